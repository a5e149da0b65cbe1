"""A tiny random model of every architecture with which transformers generates text from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ..tiny_models import BOS, EOS
from . import tables
from .sizes import sized


@dataclass(frozen=True)
class Widths:
    """Standard deviations of the random weights, such that greedy tokens neither repeat nor ignore the
    prompt.
    """

    weights: float = 0.3
    tied_embedding: float = 0.05
    """Small: else the token that was put in is the likeliest to come out."""
    positions: float = 0.3
    cross_attention: float = 0.3


WIDE = Widths(0.6, 0.15, positions=1.0)
# Norms after each residual sum wash out the past where a layer adds more than it is given.
POST_NORM = Widths(0.1, 0.1, positions=2.0, cross_attention=0.1)
# The encoder says the same at every step: it must not drown the decoder's own tokens.
PRE_NORM_ENCODER_DECODER = Widths(0.45, 0.15, positions=1.0, cross_attention=0.3)
T5 = Widths(0.3, 0.15, cross_attention=0.45)
# These scale embeddings up and norm what each layer adds.
GEMMA = Widths(0.6, 0.02, cross_attention=0.45)
SINUSOIDAL = Widths(0.8, 0.15, cross_attention=0.3)
OTHER_WIDTHS = {
    "gemma3": GEMMA,
    "gemma3_text": GEMMA,
    "t5gemma": GEMMA,
    "t5gemma2": GEMMA,
    "m2m_100": SINUSOIDAL,
    "seamless_m4t": SINUSOIDAL,
    "seamless_m4t_v2": SINUSOIDAL,
    "fsmt": Widths(0.1, 0.15, cross_attention=0.07),
    "longt5_global": T5,
    "marian": Widths(0.3, 0.6, cross_attention=0.1),
    "opt_post_norm": POST_NORM,
}
NOTES = {
    "bart_decoder": "the decoder of an encoder-decoder alone",
    "bigbird_pegasus": "block-sparse attention is for inputs beyond 704 tokens; below it is full",
    "cpmant": "token 0 is padding wherever it stands",
    "gemma3": "takes images too; here text only",
    "gemma4": "takes images and sound too; here text only",
    "gemma4_unified": "takes images and sound too; here text only",
    "reformer": "rounds prompts up to whole chunks, and hashes",
    "rwkv": "its decoding with a state mixes up rows: transformers can only run one at a time",
    "xlm": "no cache: each step runs over the whole text and a mask token",
    "xlnet": "no cache: each step runs over the whole text and a dummy token",
}


@dataclass(frozen=True)
class Architecture:
    name: str
    model_type: str
    values: Mapping[str, Any] = field(default_factory=dict)
    encoder_decoder: bool = False
    widths: Widths = Widths()
    note: str = ""

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        config_class: type[PreTrainedConfig] = CONFIG_MAPPING[self.model_type]
        return config_class

    @property
    def model_class(self) -> type[PreTrainedModel]:
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if self.encoder_decoder:
            names = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        model_class: type[PreTrainedModel] = getattr(transformers, names[self.model_type])
        return model_class

    def config(self) -> PreTrainedConfig:
        return sized(self.model_type, **self.values)


def _table() -> dict[str, Architecture]:
    groups = (
        (tables.DECODERS, False, Widths()),
        (tables.WIDE_DECODERS, False, WIDE),
        (tables.STATE_SPACES, False, Widths()),
        (tables.BERTS, False, POST_NORM),
        (tables.T5S, True, T5),
        (tables.PRE_NORM_ENCODER_DECODERS, True, PRE_NORM_ENCODER_DECODER),
        (tables.POST_NORM_ENCODER_DECODERS, True, POST_NORM),
    )
    table = {
        name: Architecture(name, name, values, encoder_decoder, OTHER_WIDTHS.get(name, widths))
        for group, encoder_decoder, widths in groups
        for name, values in group.items()
    }
    for name, (model_type, values) in tables.VARIANTS.items():
        encoder_decoder = model_type == "longt5"
        table[name] = Architecture(
            name, model_type, values, encoder_decoder, OTHER_WIDTHS.get(name, Widths())
        )
    return {name: replace(each, note=NOTES.get(name, "")) for name, each in table.items()}


ARCHITECTURES: Mapping[str, Architecture] = _table()


def tiny_architecture(name: str, *, seed: int = 0) -> PreTrainedModel:
    """A float32 model on the CPU, whose weights are wide enough that its tokens vary."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = architecture.model_class(architecture.config()).eval()
    _widen(model, architecture.widths)
    generation = model.generation_config
    generation.eos_token_id = generation.forced_eos_token_id = None
    generation.bos_token_id = BOS
    if architecture.encoder_decoder:
        generation.decoder_start_token_id = BOS
        generation.pad_token_id = EOS
    return model


# State-space parameters are stable only where their own initialisation puts them.
_OWN = ("A_log", "dt_proj", "conv1d", "time_", "gate_preact", "norm")


def _widen(model: PreTrainedModel, widths: Widths) -> None:
    output = model.get_output_embeddings()
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    tied = next((weight for weight in embeddings if output is not None and weight is output.weight), None)
    computed = {
        id(parameter)
        for module in model.modules()
        if "Sinusoidal" in type(module).__name__
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
        elif parameter.dim() > 1 and id(parameter) not in computed and not any(part in name for part in _OWN):
            std = widths.tied_embedding if parameter is tied else _std(name, widths)
            torch.nn.init.normal_(parameter, std=std)


def _std(name: str, widths: Widths) -> float:
    if "position" in name or "wpe" in name:
        return widths.positions
    if "encoder_attn" in name or "EncDecAttention" in name or "cross" in name:
        return widths.cross_attention
    return widths.weights

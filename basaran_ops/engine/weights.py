"""From a checkpoint on disk to a transformers model on its device."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ..errors import ModelLoadError
from ..settings import Settings
from .devices import choose_dtype, device_map_for, gpus_used, visible_gpus
from .library_logs import only_errors_logged
from .memory import available_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on local disk."""

    path: Path
    """Directory with config and weights."""
    tokenizer_path: Path
    """Directory with the tokenizer; the same unless the weights are a GGUF file."""
    gguf_file: str | None = None
    """Name of the weights' file in `path`, where they are GGUF."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Directory of each adapter by its name."""
    cache: Path | None = None
    """Directory where what is made of it may be kept; None: nowhere."""

    @property
    def source(self) -> Path:
        """What to name where something is wrong with it."""
        return self.path / (self.gguf_file or "config.json")


def load_model(checkpoint: Checkpoint, settings: Settings, device: torch.device) -> PreTrainedModel:
    """The transformers model, in eval mode, on its device, or with its layers spread over several GPUs.

    Raises ModelLoadError, in one line, for whatever cannot be loaded whole or does not generate text.
    """
    config = read_config(checkpoint, settings)
    auto_class = _auto_class(checkpoint, config)
    placing = _placing(settings, device)
    quantization = _quantization(checkpoint, settings, device)
    try:
        with only_errors_logged("transformers"):
            model, report = auto_class.from_pretrained(
                checkpoint.path,
                gguf_file=checkpoint.gguf_file,
                dtype=choose_dtype(settings, device, getattr(config, "dtype", None)),
                quantization_config=quantization,
                trust_remote_code=settings.model_trust_remote_code,
                # None: safetensors where there are some. Pickles are read by torch's restricted unpickler.
                use_safetensors=None if settings.model_allow_pickle else True,
                local_files_only=True,
                output_loading_info=True,
                # Reported and refused below: transformers would raise without saying what differs.
                ignore_mismatched_sizes=True,
                **placing,
            )
    except Exception as error:
        # Code that comes with a model raises what it likes.
        raise ModelLoadError(f"{checkpoint.path}: {first_line(error)}") from error
    _check_report(checkpoint, model, report)
    loaded: PreTrainedModel = model.eval()
    if placing or getattr(loaded, "is_quantized", False):
        return loaded
    return loaded.to(device)


def read_config(checkpoint: Checkpoint, settings: Settings) -> PreTrainedConfig:
    """The model's configuration. Raises ModelLoadError where there is none that transformers understands."""
    try:
        with only_errors_logged("transformers"):
            config = AutoConfig.from_pretrained(
                checkpoint.path,
                gguf_file=checkpoint.gguf_file,
                trust_remote_code=settings.model_trust_remote_code,
                local_files_only=True,
            )
    except Exception as error:
        raise ModelLoadError(f"{checkpoint.source}: {_config_fault(error)}") from error
    assert isinstance(config, PreTrainedConfig)
    return config


def needs_remote_code(error: Exception) -> bool:
    """Whether transformers refused because code that comes with the model may not be run."""
    return "trust_remote_code=True" in str(error)


REMOTE_CODE_NEEDED = (
    "the model needs code that comes with it: set MODEL_TRUST_REMOTE_CODE=true if you trust its author"
)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _config_fault(error: Exception) -> str:
    if needs_remote_code(error):
        return REMOTE_CODE_NEEDED
    # Advice on how to install a newer transformers follows the first sentence.
    return first_line(error).partition(". ")[0]


def _auto_class(checkpoint: Checkpoint, config: PreTrainedConfig) -> Any:
    """The class that loads this kind of model. Raises ModelLoadError for a kind that writes no text."""
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    auto_class = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    own_code = getattr(config, "auto_map", None) or {}
    known = type(config) in auto_class._model_mapping  # noqa: SLF001 - there is no public way to ask
    if not (known or auto_class.__name__ in own_code) or _is_made_for_another_task(config):
        made_as = ", ".join(config.architectures or ()) or config.model_type
        raise ModelLoadError(f"{checkpoint.source}: {made_as} is not a text-generation model")
    return auto_class


def _is_made_for_another_task(config: PreTrainedConfig) -> bool:
    """Whether the checkpoint was saved with a head for something else, such as classification.

    transformers would make a new head for it, of random numbers. A checkpoint without any head passes: GPT-2
    and others share theirs with the embedding.
    """
    names = MODEL_MAPPING_NAMES.get(config.model_type, ())
    bare = (names,) if isinstance(names, str) else names
    heads = [getattr(transformers, name, None) for name in config.architectures or () if name not in bare]
    return bool(heads) and all(head is not None and not head.can_generate() for head in heads)


def _placing(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Arguments by which from_pretrained puts the weights where they belong; none: in memory first."""
    visible = visible_gpus(device)
    spread = device_map_for(device, settings.gpus_per_replica, visible)
    if spread is not None:
        used = gpus_used(device, settings.gpus_per_replica, visible)
        # No entry for the CPU: what does not fit shall fail, not crawl.
        return {
            "device_map": spread,
            "max_memory": {i: available_bytes(torch.device("cuda", i)) for i in used},
        }
    if settings.model_load_in_8bit or settings.model_load_in_4bit:
        # Quantized on the way; left alone, transformers would take any GPU that it finds.
        return {"device_map": {"": "cuda:0" if str(device) == "cuda" else str(device)}}
    return {}


def _quantization(checkpoint: Checkpoint, settings: Settings, device: torch.device) -> Any:
    """bitsandbytes, on CUDA and on CPUs, for decoders and encoder-decoders alike."""
    if checkpoint.gguf_file is not None:
        # Packed GGUF blocks are unpacked at every product: dense weights are faster and exact.
        return GgufConfig(dequantize=True)
    if not (settings.model_load_in_8bit or settings.model_load_in_4bit):
        return None
    if device.type not in ("cuda", "cpu"):
        name = "MODEL_LOAD_IN_8BIT" if settings.model_load_in_8bit else "MODEL_LOAD_IN_4BIT"
        raise ModelLoadError(
            f"{name} is for cuda and cpu: bitsandbytes is not used on {device.type}; unset it, or set "
            "ENGINE_DEVICE=cpu"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=settings.model_load_in_8bit, load_in_4bit=settings.model_load_in_4bit
    )


def _check_report(checkpoint: Checkpoint, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuse a model of which a part would be random numbers."""
    kind = type(model).__name__
    if not model.can_generate():
        raise ModelLoadError(f"{checkpoint.source}: {kind} is not a text-generation model")
    if report["mismatched_keys"]:
        tensor, found, expected = min(report["mismatched_keys"])
        raise ModelLoadError(
            f"{checkpoint.path}: {tensor} is {list(found)} in the weights, but {list(expected)} by "
            f"{checkpoint.source.name}; {len(report['mismatched_keys'])} tensors differ"
        )
    # A buffer that is not there is computed, not drawn.
    missing = set(report["missing_keys"]) - {name for name, _ in model.named_buffers()}
    if missing:
        raise ModelLoadError(f"{checkpoint.path}: the weights lack {_some(missing)} of {kind}")
    if report["unexpected_keys"]:
        log.warning("%s: %s has no use for %s", checkpoint.path, kind, _some(report["unexpected_keys"]))


def _some(tensors: Collection[str]) -> str:
    """A few names, and how many more."""
    names = sorted(tensors)
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

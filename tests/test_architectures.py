"""The tiny models stand for their architectures: they load from disk, and their tokens tell inputs apart."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from .architectures import ARCHITECTURES, tiny_architecture
from .tiny_models import VOCAB

LENGTHS = (1, 5, 17, 40)
TOKENS = 12


def prompts() -> list[torch.Tensor]:
    random = Random(1)
    return [torch.tensor([[random.randrange(2, VOCAB) for _ in range(length)]]) for length in LENGTHS]


def greedy(model: PreTrainedModel, prompt: torch.Tensor) -> tuple[int, ...]:
    mask = torch.ones_like(prompt)
    output = model.generate(
        prompt, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
    )
    return tuple(output[0, -TOKENS:].tolist())


def logits(model: PreTrainedModel, prompt: torch.Tensor) -> torch.Tensor:
    # The encoder and the decoder may read different parts of the same text.
    decoder = {"decoder_input_ids": prompt[:, :5]} if model.config.is_encoder_decoder else {}
    output: torch.Tensor = model(input_ids=prompt, **decoder).logits
    return output


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_an_architecture_generates_and_loads_from_disk(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    model = tiny_architecture(name)
    assert isinstance(model, architecture.model_class)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) < 2e6
    tokens = [greedy(model, prompt) for prompt in prompts()]
    assert len(set(tokens)) >= 3, "the model says the same to everything"
    assert sum(len(set(each)) > 1 for each in tokens) >= 3, "the model repeats one token"
    expected = logits(model, prompts()[2])
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if architecture.encoder_decoder else AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    # Not to the bit: where weights lie in memory decides how sums are split on some processors.
    torch.testing.assert_close(logits(loaded, prompts()[2]), expected, rtol=1e-4, atol=1e-4)


def test_a_seed_is_a_model() -> None:
    first, same, other = (tiny_architecture("llama", seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_every_architecture_stands_under_a_name_that_transformers_knows() -> None:
    for name, architecture in ARCHITECTURES.items():
        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if architecture.encoder_decoder:
            known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        assert architecture.name == name
        assert architecture.model_type in known

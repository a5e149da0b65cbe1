"""A model's generation config, honoured as generate() does, by the packed runner and by the padded one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from basaran_ops.engine.constraints import Constraints
from basaran_ops.engine.sequence import Sequence
from basaran_ops.sampling_params import SamplingParams

from ..architectures import tiny_architecture
from .engines import drain, engine_for

PROMPTS = [tuple(range(2, 200)), (9, 10, 11), (12,) * 9]
LIMIT = 16


def expected(model: PreTrainedModel, prompt: tuple[int, ...], **config: Any) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=LIMIT,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
        )
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    tokens: list[int] = output[0, start:].tolist()
    return tokens


CASES: dict[str, dict[str, Any]] = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": list(range(2, 300, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": [token for token in range(320) if token % 7]},
    "bad_words_ids": {"bad_words_ids": [[number] for number in range(3, 200, 3)]},
    "bad words of two tokens": {"bad_words_ids": [[a, b] for a in range(2, 60) for b in range(2, 60)]},
    "min_length": {"min_length": 15, "eos_token_id": list(range(2, 160))},
    "min_new_tokens": {"min_new_tokens": 15, "eos_token_id": list(range(2, 160))},
    "forced_eos_token_id": {"forced_eos_token_id": 17, "eos_token_id": 17},
    "several eos": {"eos_token_id": list(range(2, 60))},
}
DECODER_CASES: dict[str, dict[str, Any]] = {
    "forced_bos_token_id": {"forced_bos_token_id": 33},
    "forced and suppressed": {"forced_bos_token_id": 33, "begin_suppress_tokens": list(range(2, 320, 2))},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("name", ["llama", "bloom", "bart"])
def test_what_a_config_demands_is_what_generate_makes_of_it(name: str, config: dict[str, Any]) -> None:
    check(name, config)


@pytest.mark.parametrize("config", DECODER_CASES.values(), ids=DECODER_CASES.keys())
@pytest.mark.parametrize("name", ["t5", "mbart"])
def test_so_is_what_only_a_decoder_of_its_own_is_asked(name: str, config: dict[str, Any]) -> None:
    check(name, config)


def check(name: str, config: dict[str, Any]) -> None:
    free, model = tiny_architecture(name), tiny_architecture(name)
    model.generation_config.update(**config)
    want = [expected(model, prompt) for prompt in PROMPTS]
    assert want != [expected(free, prompt) for prompt in PROMPTS], "it demands nothing of these"
    eos = config.get("eos_token_id", [])
    engine = engine_for(model, eos=eos if isinstance(eos, list) else [eos])
    for number, prompt in enumerate(PROMPTS):
        engine.add(number, prompt, SamplingParams(max_tokens=LIMIT, temperature=0), None)
    tokens = drain(engine)
    assert [tokens[number] for number in range(len(PROMPTS))] == want


def test_a_config_that_demands_nothing_costs_nothing() -> None:
    assert not Constraints().active
    assert not Constraints(GenerationConfig(temperature=0.5, top_k=3, repetition_penalty=2.0)).active
    assert Constraints(GenerationConfig(suppress_tokens=[5])).active


def test_who_ignores_eos_gets_none_forced_and_none_forbidden() -> None:
    config = GenerationConfig(forced_eos_token_id=3, min_length=50)
    sequence = Sequence(0, (5, 6), SamplingParams(max_tokens=1, ignore_eos=True), None)
    logits = torch.zeros(10)
    Constraints(config, [3]).apply(logits, sequence)
    assert logits.tolist() == [0.0] * 10


def test_ids_that_cannot_be_generated_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = GenerationConfig(suppress_tokens=[5, 400], bad_words_ids=[[400], [6]], min_length=9)
    sequence = Sequence(0, (5, 6), SamplingParams(max_tokens=9), None)
    logits = torch.zeros(10)
    Constraints(config, [400, 3, -1], size=10).apply(logits, sequence)
    assert [token for token, value in enumerate(logits.tolist()) if value] == [3, 5, 6]
    assert "tokens that the model does not have: [400" in caplog.text

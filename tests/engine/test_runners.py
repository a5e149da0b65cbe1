from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from basaran_ops.engine import runners
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.padded_runner import PaddedRunner
from basaran_ops.engine.runners import choose_runner
from basaran_ops.errors import ModelLoadError
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings

from ..architectures import tiny_architecture
from .engines import drain, engine_for

PROMPTS = [tuple(range(2, 2 + length)) for length in (4, 9, 1, 17)]


def chosen(model: PreTrainedModel, **settings: Any) -> PackedRunner | PaddedRunner:
    small = {"engine_slots": 2, "engine_token_budget": 64, "engine_context_length": 64}
    runner = choose_runner(model, Settings(**small | settings), 0.1)
    assert isinstance(runner, PackedRunner | PaddedRunner)
    return runner


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bloom", "takes no position_ids"),
        ("gptj", "does not route its attention through transformers' AttentionInterface"),
        ("jamba", "gives other logits when run packed"),
        ("t5", "is an encoder-decoder model"),
        ("deepseek_v32", "TypeError"),
    ],
)
def test_a_model_that_cannot_run_packed_runs_padded_and_the_log_says_why(
    name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="basaran_ops"):
        assert chosen(tiny_architecture(name)).name == "padded"
    assert "it cannot run packed" in caplog.text
    assert reason in caplog.text


def test_a_model_that_can_runs_packed() -> None:
    assert chosen(tiny_architecture("llama")).name == "packed"


def test_the_choice_can_be_overridden() -> None:
    assert chosen(tiny_architecture("llama"), engine_runner="padded").name == "padded"
    with pytest.raises(ModelLoadError, match="BloomForCausalLM takes no position_ids"):
        chosen(tiny_architecture("bloom"), engine_runner="packed")


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_both_runners_give_the_same_tokens(name: str) -> None:
    tokens = []
    for runner in ("packed", "padded"):
        engine = engine_for(tiny_architecture(name), runner=runner)
        for number, prompt in enumerate(PROMPTS):
            engine.add(number, prompt, SamplingParams(max_tokens=10, temperature=0), None)
        tokens.append(drain(engine))
    assert tokens[0] == tokens[1]


def test_the_attention_of_a_model_that_cannot_run_packed_is_its_own_again() -> None:
    model = tiny_architecture("jamba")
    own = model.config._attn_implementation
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        chosen(model)
        assert model.config._attn_implementation == own
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    model = tiny_architecture("bloom")
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(ModelLoadError, match="logits that are not finite"):
        chosen(model)


def test_a_model_that_raises_is_refused_with_its_own_words() -> None:
    model = tiny_architecture("bloom")

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel for this")

    model.forward = broken
    with pytest.raises(ModelLoadError, match="BloomForCausalLM: RuntimeError: no kernel for this"):
        chosen(model)


@pytest.mark.parametrize(
    ("name", "context", "completion"),
    [("bart", 64, 64), ("t5", 64, 64), ("bloom", 64, None), ("mamba", 64, None)],
)
def test_an_encoder_decoder_model_has_a_context_for_each_text(
    name: str, context: int, completion: int | None
) -> None:
    runner = chosen(tiny_architecture(name))
    assert (runner.context_length, runner.completion_length) == (context, completion)


def test_a_decoder_with_fewer_positions_than_its_encoder_bounds_completions() -> None:
    model = tiny_architecture("led")
    model.config.max_decoder_position_embeddings = 48
    assert chosen(model).completion_length == 48


@pytest.mark.parametrize("name", ["llama4_text", "doge", "deepseek_v4"])
def test_attention_that_differs_only_beyond_a_probe_runs_padded(name: str) -> None:
    model = tiny_architecture(name)
    for field in ("attention_chunk_size", "keep_window_size"):
        if hasattr(model.config, field):
            setattr(model.config, field, 8192)
    assert chosen(model).name == "padded"


def test_longrope_is_held_to_where_its_factors_change(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_architecture("phi3")
    model.config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }
    model.config.max_position_embeddings = 512
    assert runners._model_length(model.config) == 64
    assert "the context is held to 64 of 512 positions" in caplog.text
    assert runners._model_length(tiny_architecture("phi3").config) == 512

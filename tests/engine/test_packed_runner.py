from __future__ import annotations

import logging

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from basaran_ops.engine import packed_runner
from basaran_ops.engine.context_fit import ContextWish
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.probe import RunnerUnfit
from basaran_ops.errors import ModelLoadError

from ..tiny_models import tiny_model
from .engines import wish

TOKEN_BYTES = 3 * 2 * 16 * 2 * 4
"""Layers x heads x dim x (keys and values) x float32 of the tiny Llama."""


def runner(
    memory: int, monkeypatch: pytest.MonkeyPatch, context_length: int | None = None, slots: int = 4
) -> PackedRunner:
    monkeypatch.setattr(packed_runner, "available_bytes", lambda *devices: memory)
    chosen = ContextWish(slots=slots, asked=context_length, model_length=2048, memory_fraction=0.5)
    return PackedRunner(tiny_model("llama"), chosen)


def test_the_context_is_the_models_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner(2**30, monkeypatch).context_length == 2048


def test_the_context_shrinks_to_memory_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert runner(TOKEN_BYTES * 4 * 2 * 1000, monkeypatch).context_length == 768
    assert "context length is 768 of the model's 2048 tokens" in caplog.text


def test_a_context_that_does_not_fit_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match=r"ENGINE_SLOTS=4 sequences of 1500 tokens need .* lower"):
        runner(TOKEN_BYTES * 4 * 2 * 1000, monkeypatch, context_length=1500)


def test_too_little_memory_for_any_useful_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="need"):
        runner(TOKEN_BYTES * 4 * 2 * 100, monkeypatch)


def test_a_context_beyond_the_models_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="more than the model's 2048 positions"):
        runner(2**30, monkeypatch, context_length=4096)


def test_a_short_context_is_given_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner(2**30, monkeypatch, context_length=64).context_length == 64


def test_attention_that_cannot_be_replaced_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2)).eval()
    with pytest.raises(RunnerUnfit, match=r"BloomForCausalLM takes no position_ids"):
        PackedRunner(model, wish(2, model_length=64))


def test_attention_that_we_would_get_wrong_is_refused() -> None:
    model = tiny_model("llama")
    forward = model.model.layers[1].self_attn.forward

    def odd(*args: object, **kwargs: object) -> object:
        output, weights = forward(*args, **kwargs)
        # What a bias that only the model's own attention adds would do.
        return (output if "basaran" in model.config._attn_implementation else output * 1.5), weights

    model.model.layers[1].self_attn.forward = odd
    with pytest.raises(ModelLoadError, match="gives other logits when run packed"):
        PackedRunner(model, wish(2, model_length=64))


def test_bfloat16_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    packed = PackedRunner(model, wish(2, model_length=64, asked=64))
    assert packed.context_length == 64

"""Attention by flash-attn, whose function a stand-in takes the place of: what it is asked, and when it is."""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import pytest
import torch

from basaran_ops.engine import flash
from basaran_ops.engine.attention import Kernel, LayerCall, SlotAttention, TorchBackend
from basaran_ops.engine.flash import FlashBackend, use_flash, why_not
from basaran_ops.engine.kv_cache import LayerShape
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import VOCAB, generate, tiny_model
from .engines import drain, engine_for

CUDA = torch.device("cuda", 0)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache_seqlens: torch.Tensor,
    cache_batch_idx: torch.Tensor,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> torch.Tensor:
    """What flash-attn 2 says that it does with these, and the checks that it makes first."""
    batch, tokens, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    for tensor in (q, k_cache, v_cache, k, v):
        assert tensor.shape[-1] == dim
        assert tensor.stride(-1) == 1, "the last dimension must be contiguous"
    assert k.shape == v.shape == (batch, tokens, kv_heads, dim)
    for numbers in (cache_seqlens, cache_batch_idx):
        assert numbers.dtype == torch.int32
        assert numbers.shape == (batch,)
        assert numbers.is_contiguous()
    assert causal
    out = torch.empty(batch, tokens, heads, dim)
    for number in range(batch):
        slot, start = int(cache_batch_idx[number]), int(cache_seqlens[number])
        end = start + tokens
        k_cache[slot, start:end], v_cache[slot, start:end] = k[number], v[number]
        keys, values = (
            cached[slot, :end].repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1)
            for cached in (k_cache, v_cache)
        )
        scores = q[number].transpose(0, 1) @ keys.transpose(1, 2) * softmax_scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        distance = torch.arange(start, end)[:, None] - torch.arange(end)
        hidden = distance < 0
        if window_size != (-1, -1):
            before, after = window_size
            hidden |= (distance > before) | (distance < -after)
        out[number] = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1)
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma2"])
def test_greedy_tokens_equal_generate_alone(name: str) -> None:
    model = tiny_model(name)
    random = Random(name)
    shared = tuple(random.randrange(VOCAB) for _ in range(30))
    given = [shared[: 20 + n] + tuple(random.randrange(VOCAB) for _ in range(n)) for n in (1, 3, 9, 14, 31)]
    expected = [generate(model, prompt, 30) for prompt in given]
    engine = engine_for(model, runner="packed", engine_compile=False)
    runner = engine._runner
    assert isinstance(runner, PackedRunner)
    runner._attention.backend = FlashBackend(flash_attn_with_kvcache)
    tokens: dict[int, list[int]] = {number: [] for number in range(len(given))}
    for number, prompt in enumerate(given):
        engine.add(number, prompt, SamplingParams(max_tokens=30, temperature=0), None)
        # The next prompt is read, in chunks, beside those that decode or check drafts.
        for output in engine.step():
            tokens[output.sequence_id] += output.token_ids
    for number, rest in drain(engine).items():
        tokens[number] += rest
    assert list(tokens.values()) == expected
    assert engine.stats.prefix_hits


SHAPE = LayerShape(2, 64, 2, 64, torch.bfloat16, CUDA)


def shape(**changes: Any) -> LayerShape:
    return LayerShape(
        **{
            "key_heads": 2,
            "key_dim": 64,
            "value_heads": 2,
            "value_dim": 64,
            "dtype": torch.bfloat16,
            "device": CUDA,
        }
        | changes
    )


def call(softcap: float | None = None, sinks: torch.Tensor | None = None) -> LayerCall:
    return LayerCall(0, None, Kernel(0.125, softcap, sinks))


def without_softcap(q: object, softmax_scale: float) -> None:
    """As an early version has it."""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": shape(device=torch.device("cpu"))}, "it runs on CUDA alone"),
        ({"function": None}, "the package flash-attn is not installed"),
        ({"capability": (7, 5)}, "it wants compute capability 8.0, Ampere, not (7, 5)"),
        ({"shape": shape(dtype=torch.float32)}, "it takes float16 and bfloat16, not float32"),
        ({"shape": shape(value_dim=32)}, "keys and values differ in shape"),
        ({"shape": shape(value_heads=1)}, "keys and values differ in shape"),
        (
            {"shape": shape(key_dim=320, value_dim=320)},
            "it takes heads of multiples of 8 up to 256 columns, not [320]",
        ),
        (
            {"shape": shape(key_dim=36, value_dim=36)},
            "it takes heads of multiples of 8 up to 256 columns, not [36]",
        ),
        ({"call": call(sinks=torch.zeros(4))}, "the model has attention sinks"),
        ({"call": call(softcap=50.0), "function": without_softcap}, "this version has no soft-capping"),
        ({"call": call(softcap=50.0)}, None),
        ({"shape": shape(dtype=torch.float16, key_dim=256, value_dim=256)}, None),
        ({}, None),
    ],
)
def test_it_attends_where_it_can_and_says_why_where_it_cannot(
    changes: dict[str, Any], reason: str | None
) -> None:
    # The other layer could be attended: one that cannot is enough.
    shapes = [SHAPE, changes.get("shape", SHAPE)]
    calls = [call(), changes.get("call", call())]
    function = changes.get("function", flash_attn_with_kvcache)
    assert why_not(shapes, calls, function, changes.get("capability", (8, 0))) == reason


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> SlotAttention:
    """The attention of a model that a probe has run through on a GPU that flash-attn takes."""
    monkeypatch.setattr(flash, "installed", lambda: flash_attn_with_kvcache)
    monkeypatch.setattr(flash, "least_capability", lambda shapes: (9, 0))
    attention = SlotAttention()
    attention.shapes[0] = SHAPE
    attention.probed.append(call())
    return attention


def test_it_is_used_from_the_probe_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attention = on_gpu(monkeypatch)
    probed_with = []
    with caplog.at_level(logging.INFO):
        use_flash(attention, lambda: probed_with.append(attention.backend))
    assert isinstance(attention.backend, FlashBackend)
    assert probed_with == [attention.backend]
    assert caplog.messages == ["it attends by flash-attn"]


def test_a_build_that_fails_or_gives_other_logits_leaves_torchs_attention_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def check() -> None:
        raise RuntimeError("no kernel image is available for execution on the device\nand more")

    attention = on_gpu(monkeypatch)
    with caplog.at_level(logging.INFO):
        use_flash(attention, check)
    assert isinstance(attention.backend, TorchBackend)
    (message,) = caplog.messages
    assert message == (
        "it attends by torch and not flash-attn: RuntimeError: no kernel image is available for execution "
        "on the device"
    )


def test_a_cpu_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    attention = SlotAttention()
    attention.shapes[0] = shape(device=torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        use_flash(attention, lambda: pytest.fail("it was tried"))
    assert caplog.messages == []
    assert isinstance(attention.backend, TorchBackend)


def test_a_package_that_cannot_be_imported_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"{name}: undefined symbol")

    monkeypatch.setattr(flash.importlib, "import_module", missing)
    assert flash.installed() is None

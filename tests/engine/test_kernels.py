"""The compiled functions against what torch computes in float32."""

from __future__ import annotations

import pytest
import torch

from basaran_ops.engine import kernels

TYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


def test_they_are_compiled() -> None:
    assert kernels.available


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    assert found.shape == expected.shape
    assert error.item() < TOLERANCE[found.dtype]


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (5, 37), (3, 576), (200, 256)])
def test_norms(dtype: torch.dtype, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, residual = (torch.randn(1, rows, width, generator=generator).to(dtype) for _ in range(2))
    weight = torch.rand(width, generator=generator)
    assert_close(kernels.rms_norm(x, weight, 1e-5), normed(x, weight, 1e-5))
    norm, total = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert_close(norm, normed(total, weight, 1e-5))


@pytest.mark.parametrize("dtype", TYPES)
def test_norms_of_views_and_of_zeros(dtype: torch.dtype) -> None:
    x = torch.randn(1, 6, 40).to(dtype)[:, ::2]
    assert_close(kernels.rms_norm(x, torch.ones(40), 1e-6), normed(x, torch.ones(40), 1e-6))
    assert kernels.rms_norm(torch.zeros(1, 2, 16, dtype=dtype), torch.ones(16), 1e-6).abs().max() == 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [2, 10, 64, 128])
def test_rotations(dtype: torch.dtype, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(1, 7, 3 * dim, generator=generator).to(dtype).view(1, 7, 3, dim).transpose(1, 2)
    cos, sin = (torch.randn(1, 7, dim, generator=generator).to(dtype) for _ in range(2))
    wide, half = x.float(), dim // 2
    turned = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    assert_close(kernels.rotate(x, cos, sin), wide * cos[:, None].float() + turned * sin[:, None].float())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 30, 1536])
def test_gates(dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    both = (torch.randn(1, 4, 2 * width, generator=generator) * 8).to(dtype)
    gate, up = both.split(width, dim=-1)
    assert_close(kernels.silu_gate(gate, up), torch.nn.functional.silu(gate.float()) * up.float())


@pytest.mark.parametrize("value", [0.0, 90.0, -90.0, 3e38, -3e38, float("inf"), float("nan")])
def test_gates_at_the_ends_of_the_range(value: float) -> None:
    gate = torch.full((1, 1, 24), value)
    found = kernels.silu_gate(gate, torch.ones(1, 1, 24))
    expected = torch.nn.functional.silu(gate)
    assert torch.allclose(found, expected, atol=1e-30, equal_nan=True)


def test_not_a_number_stays_one_in_bfloat16() -> None:
    x = torch.tensor([[[float("nan"), 1.0] * 8]], dtype=torch.bfloat16)
    norm, total = kernels.add_rms_norm(x, x, torch.ones(16), 1e-6)
    assert norm.isnan().all()
    assert torch.equal(total.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", TYPES)
def test_writing_to_slots(dtype: torch.dtype) -> None:
    cache, expected = (torch.zeros(4, 2, 9, 6, dtype=dtype) for _ in range(2))
    source = torch.randn(1, 2, 5, 6).to(dtype)[0].transpose(0, 1)
    slots, positions = torch.tensor([0, 3, 3, 3, 1]), torch.tensor([8, 0, 1, 2, 4])
    kernels.write_slots(source, cache, slots, positions)
    expected[slots, :, positions] = source
    assert torch.equal(cache, expected)


LENGTHS = [1, 2, 63, 64, 65, 511, 512, 513, 1300]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"),
    [(9, 3, 64, 64), (8, 1, 32, 24), (4, 4, 128, 128), (6, 2, 10, 20), (14, 2, 80, 80), (5, 1, 3, 3)],
)
@pytest.mark.parametrize(
    ("window", "softcap", "sinks"),
    [(None, None, False), (100, None, False), (700, 20.0, True), (None, None, True)],
)
def test_decode_attention(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
) -> None:
    generator = torch.Generator().manual_seed(heads * dim)
    keys = torch.randn(len(LENGTHS) + 2, kv_heads, 1300, dim, generator=generator).to(dtype)
    values = torch.randn(len(LENGTHS) + 2, kv_heads, 1300, value_dim, generator=generator).to(dtype)
    query = torch.randn(1, heads, len(LENGTHS), dim, generator=generator).to(dtype)[0].transpose(0, 1)
    slots = torch.tensor([10, 1, 2, 0, 5, 4, 7, 9, 3])
    sink = torch.randn(heads, generator=generator) if sinks else None
    out = torch.full((len(LENGTHS) + 1, heads, value_dim), 7.0, dtype=dtype)
    kernels.decode_attention(
        query,
        keys,
        values,
        slots,
        torch.tensor(LENGTHS),
        out,
        longest=1300,
        scale=dim**-0.5,
        window=window,
        softcap=softcap,
        sinks=sink,
    )
    for row, length in enumerate(LENGTHS):
        first = 0 if window is None else max(0, length - window)
        seen, weighed = (
            cache[slots[row], :, first:length].float().repeat_interleave(heads // kv_heads, dim=0)
            for cache in (keys, values)
        )
        scores = (seen @ query[row].float()[:, :, None])[..., 0] * dim**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if sink is not None:
            scores = torch.cat([scores, sink[:, None]], dim=-1)
        weights = scores.softmax(dim=-1)[:, : length - first]
        assert_close(out[row], (weights[:, None] @ weighed)[:, 0].to(dtype))
    assert (out[-1] == 7).all(), "a row beyond those asked for was written"


def test_decode_attention_with_one_key_far_above_the_others() -> None:
    keys = torch.zeros(1, 1, 600, 16)
    keys[0, 0, 550] = 1000.0
    values = torch.arange(600.0)[None, None, :, None].expand(1, 1, 600, 16).contiguous()
    out = torch.empty(1, 1, 16)
    kernels.decode_attention(
        torch.ones(1, 1, 16),
        keys,
        values,
        torch.tensor([0]),
        torch.tensor([600]),
        out,
        longest=600,
        scale=1.0,
        window=None,
        softcap=None,
        sinks=None,
    )
    assert (out == 550).all()


def test_any_number_of_threads_gives_the_same() -> None:
    before = torch.get_num_threads()
    x, residual = torch.randn(1, 300, 576), torch.randn(1, 300, 576)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernels.add_rms_norm(x, residual, torch.ones(576), 1e-5))
    finally:
        torch.set_num_threads(before)
    for norm, total in results[1:]:
        assert torch.equal(norm, results[0][0])
        assert torch.equal(total, results[0][1])

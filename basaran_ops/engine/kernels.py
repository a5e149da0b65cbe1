"""Fused operations of a step on a CPU, written in C: one pass over memory where torch takes several.

`_kernels` is compiled when the package is installed; where that was not possible, `available` is False and
the model's own operations run.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

_TYPES = {torch.float32: 0, torch.bfloat16: 1}


def _load() -> Any:
    try:
        return importlib.import_module("basaran_ops.engine._kernels")
    except ImportError:
        return None


_kernels = _load()

available: bool = _kernels is not None
"""Whether the compiled functions are there."""


def supports(tensor: torch.Tensor) -> bool:
    """Whether the functions here take such a tensor: float32 or bfloat16, on the CPU."""
    return available and tensor.device.type == "cpu" and tensor.dtype in _TYPES


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """X / rms(x) * weight over the last dimension (Zhang and Sennrich 2019), summed in float32.

    x [..., width]; weight [width], float32 -> as x.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    _norm(x, None, weight, out, None, eps)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of x and residual, both [..., width], and its norm: (norm, sum)."""
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    _norm(x, residual, weight, out, total, eps)
    return out, total


def _norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    total: torch.Tensor | None,
    eps: float,
) -> None:
    width = x.shape[-1]
    _kernels.rms_norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        0 if total is None else total.data_ptr(),
        x.numel() // width,
        width,
        _TYPES[x.dtype],
        torch.get_num_threads(),
        eps,
    )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [1, heads, T, dim] by cos and sin [1, T, dim], whose halves belong together
    (Su et al. 2021, as in GPT-NeoX) -> [1, heads, T, dim], laid out by token.
    """
    if x.stride(3) != 1:
        x = x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    _, heads, tokens, dim = x.shape
    out = torch.empty((1, tokens, heads, dim), dtype=x.dtype)
    _kernels.rotate(
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        out.data_ptr(),
        tokens,
        heads,
        dim,
        x.stride(2),
        x.stride(1),
        _TYPES[x.dtype],
        torch.get_num_threads(),
    )
    return out.transpose(1, 2)


def silu_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, both [1, T, width] with neighbouring columns (Shazeer 2020) -> [1, T, width]."""
    out = torch.empty(gate.shape, dtype=gate.dtype)
    _kernels.gate(
        gate.data_ptr(),
        up.data_ptr(),
        out.data_ptr(),
        gate.shape[1],
        gate.shape[2],
        gate.stride(1),
        up.stride(1),
        _TYPES[gate.dtype],
        torch.get_num_threads(),
    )
    return out


def write_slots(
    source: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> None:
    """Store source [T, heads, dim] at cache[slots, :, positions]; the cache [slots, heads, length, dim] is
    contiguous, slots and positions are [T] int64.
    """
    if source.stride(2) != 1:
        source = source.contiguous()
    tokens, heads, dim = source.shape
    _kernels.write_slots(
        source.data_ptr(),
        cache.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
        tokens,
        heads,
        source.stride(0),
        source.stride(1),
        cache.shape[2],
        dim,
        source.itemsize,
    )


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    *,
    longest: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> None:
    """Attention of one query a row over the first `lengths[row]` keys of slot `slots[row]`.

    query [R, heads, dim]; keys and values [slots, kv_heads, max_length, dim or value_dim], contiguous; slots
    and lengths [R] int64, the longest of them `longest` >= 1; sinks [heads], float32; out, contiguous,
    [R, heads, value_dim]. The softmax is computed in parts, in float32 (Milakov and Gimelshein 2018).
    """
    if query.stride(2) != 1:
        query = query.contiguous()
    rows, heads, dim = query.shape
    _kernels.decode(
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        slots.data_ptr(),
        lengths.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        out.data_ptr(),
        rows,
        heads,
        keys.shape[1],
        dim,
        values.shape[3],
        keys.shape[2],
        query.stride(0),
        query.stride(1),
        window or 0,
        longest,
        _TYPES[query.dtype],
        torch.get_num_threads(),
        scale,
        softcap or 0.0,
    )

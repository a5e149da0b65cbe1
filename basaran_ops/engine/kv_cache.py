"""Keys and values of all slots, laid out so that a decode row reads its slot without a copy."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch

from . import kernels


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer caches per token, as seen on a probe forward."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return (self.key_heads * self.key_dim + self.value_heads * self.value_dim) * self.dtype.itemsize


class SlotKVCache:
    """Two tensors a layer, [slots, heads, max_length, head_dim], on that layer's device.

    Zeroed once, never cleared: a finished slot's old values stay and are masked by length. They must be
    finite, since a masked weight of 0 times NaN is NaN.
    """

    def __init__(self, shapes: dict[int, LayerShape], *, slots: int, max_length: int) -> None:
        self.slots = slots
        self.max_length = max_length
        self.keys = {
            layer: _zeros((slots, s.key_heads, max_length, s.key_dim), s) for layer, s in shapes.items()
        }
        self.values = {
            layer: _zeros((slots, s.value_heads, max_length, s.value_dim), s) for layer, s in shapes.items()
        }

    def write(
        self,
        layer: int,
        slots: torch.Tensor,
        positions: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        """Store one step's keys and values.

        slots and positions are [T] int64; key and value [T, heads, head_dim].
        """
        for cache, source in ((self.keys[layer], key), (self.values[layer], value)):
            if kernels.supports(source) and source.dtype == cache.dtype:
                kernels.write_slots(source, cache, slots, positions)
            else:
                cache[slots, :, positions] = source

    def clear(self, slot: int) -> None:
        """Write zeros over a slot."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[slot].zero_()

    def copy(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` tokens of slot `source`."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[target, :, :length] = tensor[source, :, :length]


def bytes_per_token(shapes: dict[int, LayerShape]) -> int:
    """Cache bytes of one token over all layers."""
    return sum(shape.bytes_per_token for shape in shapes.values())


def _zeros(size: tuple[int, int, int, int], shape: LayerShape) -> torch.Tensor:
    if shape.device.type != "cpu":
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
    count = size[0] * size[1] * size[2] * size[3] * shape.dtype.itemsize
    return torch.frombuffer(_zero_pages(count), dtype=torch.uint8)[:count].view(shape.dtype).view(size)


def _zero_pages(count: int) -> mmap.mmap:
    """Zeroed bytes that take memory only as they are written to, a small page at a time. torch writes
    every page at once, and numpy asks for huge ones, with which the first token of a slot zeroes all of it.

    Raises MemoryError where the system does not give that much.
    """
    try:
        pages = mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {count} bytes for keys and values: {error.strerror}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages

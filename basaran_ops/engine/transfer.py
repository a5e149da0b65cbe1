"""Numbers from the host to a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch


def staged(
    values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """The numbers on the host, where a copy to the device need not be waited for.

    From pinned memory a GPU fetches them by itself, and torch leaves that memory alone until it has.
    """
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")


def send(
    values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """The numbers on the device, one dimension."""
    return staged(values, device, dtype).to(device, non_blocking=device.type == "cuda")


def send_all(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Several lists in one copy; each is a view of it, int64."""
    whole = send(list(chain.from_iterable(lists)), device)
    return torch.split(whole, [len(values) for values in lists])


class Places:
    """Tokens of rows, with numbers for each: what is to be done to logits, in one go for all rows."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._ids: list[int] = []
        self._numbers: list[list[float]] = []

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, row: int, ids: Sequence[int], *numbers: Sequence[float]) -> None:
        """These tokens of a row; each of `numbers` has one for each token."""
        self._rows += [row] * len(ids)
        self._ids += ids
        self._numbers = self._numbers or [[] for _ in numbers]
        for known, these in zip(self._numbers, numbers, strict=True):
            known.extend(these)

    def on(self, device: torch.device) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]:
        """Rows and ids, which are an index of logits [rows, vocab]; and the numbers, float32."""
        rows, ids = send_all((self._rows, self._ids), device)
        return (rows, ids), tuple(send(numbers, device, torch.float32) for numbers in self._numbers)

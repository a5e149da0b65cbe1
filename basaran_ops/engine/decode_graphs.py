"""Decode steps as CUDA graphs: captured when the model is loaded, replayed with one call a step.

A graph is of fixed shapes at fixed addresses, so there is one for each number of rows, 1, 2, 4 and so on up
to the slots, and a step takes the next larger one. The rows too many repeat the last: they write what it
writes, to the same place, and need no slot of their own.

How many keys a row sees is no shape for flash-attn, which reads it on the device. Torch's attention has no
such argument and reads a bucket of keys, with a mask: there is a graph for each number of keys as well, and
none for long contexts, where kernels take longer than their launch. It reads all slots where they lie or, for
few rows, copies of theirs, whichever is less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .attention import LayerCall, SlotAttention, StepPlan, TorchBackend
from .capture import GraphBackend, Replay, SameEveryTime
from .sequence import Batch
from .transfer import staged

FEWEST_KEYS, MOST_KEYS = 512, 8192
"""The smallest and the largest bucket of keys."""

MOST_WASTE = 4
"""Times as many keys as there are, up to which a bucket above the smallest is read for a step."""

COPIES = 3
"""Times that keys are moved where slots are copied: read, written, read again."""

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and positions [1, T], rows [R] -> logits [1, R, vocab]."""


class DecodeGraphs:
    """The graphs of one runner."""

    def __init__(
        self, forward: Forward, attention: SlotAttention, backend: GraphBackend, dtype: torch.dtype
    ) -> None:
        """Captures them all, the largest first, whose memory the others then share: slots must be free.

        Raises CannotCapture, or whatever the backend does.
        """
        cache = attention.cache
        assert cache is not None
        self._slots = cache.slots
        self._device = next(iter(cache.keys.values())).device
        self._rows = doubled(1, cache.slots)
        bounded = isinstance(attention.backend, TorchBackend)
        self._keys = doubled(FEWEST_KEYS, min(MOST_KEYS, cache.max_length)) if bounded else [cache.max_length]
        self._bounded = bounded
        self._inputs = {
            rows: torch.zeros(3 * rows + cache.slots, dtype=torch.long, device=self._device)
            for rows in self._rows
        }
        """For each number of rows: token, slot and position of each, and the row of each slot."""
        self._replays: dict[tuple[int, int], Replay] = {}
        for rows in reversed(self._rows):
            for keys in reversed(self._keys):
                step = _Step(forward, attention, self._inputs[rows], rows, cache.slots, keys, dtype)
                if not self._replays:
                    with SameEveryTime():  # type: ignore[no-untyped-call]
                        step()
                self._replays[rows, keys] = backend.capture(step)

    def __len__(self) -> int:
        return len(self._replays)

    def run(self, batch: Batch) -> torch.Tensor | None:
        """Logits [1, sequences, vocab], valid until the next step; None for a step that there is no graph
        for.
        """
        bucket = self._bucket(batch)
        if bucket is None:
            return None
        rows, _ = bucket
        values = staged(self._values(batch, rows), self._device)
        self._inputs[rows].copy_(values, non_blocking=True)
        return self._replays[bucket]()[:, : len(batch.decoding)]

    def _bucket(self, batch: Batch) -> tuple[int, int] | None:
        chunks = batch.decoding
        if batch.prefill or batch.checking or any(chunk.logit_rows != 1 for chunk in chunks):
            return None
        rows = next(rows for rows in self._rows if rows >= len(chunks))
        longest = max(chunk.end for chunk in chunks)
        keys = next((keys for keys in self._keys if keys >= longest), None)
        if keys is None:
            return None
        there = sum(chunk.end for chunk in chunks)
        if self._bounded and keys != self._keys[0] and rows * keys > MOST_WASTE * there:
            return None
        return rows, keys

    def _values(self, batch: Batch, rows: int) -> list[int]:
        """What the inputs for so many rows are in this step."""
        chunks = batch.decoding + batch.decoding[-1:] * (rows - len(batch.decoding))
        row_of_slot = [0] * self._slots
        for row, chunk in enumerate(chunks):
            row_of_slot[chunk.slot] = row
        return [
            *(chunk.token_ids[0] for chunk in chunks),
            *(chunk.slot for chunk in chunks),
            *(chunk.start for chunk in chunks),
            *row_of_slot,
        ]


class _Step:
    """A decode step of so many rows over so many keys, as a function of the numbers in one tensor."""

    def __init__(
        self,
        forward: Forward,
        attention: SlotAttention,
        inputs: torch.Tensor,
        rows: int,
        slots: int,
        keys: int,
        dtype: torch.dtype,
    ) -> None:
        self._forward = forward
        self._attention = attention
        self._columns = torch.split(inputs, [rows, rows, rows, slots])
        self._keys = keys
        self._dtype = dtype
        self._wanted = torch.arange(rows, device=inputs.device)

    def __call__(self) -> torch.Tensor:
        ids, slots, positions, row_of_slot = self._columns
        plan = FixedPlan(slots, positions, row_of_slot, self._keys, self._dtype)
        with self._attention.planned(plan):
            return self._forward(ids[None], positions[None], self._wanted)


class FixedPlan(StepPlan):
    """Decode rows alone, in shapes that do not depend on where their sequences are. Made anew in each pass
    that is captured: what it computes is part of the graph.
    """

    native = False

    def __init__(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        row_of_slot: torch.Tensor,
        keys: int,
        dtype: torch.dtype,
    ) -> None:
        """Slots and positions [R]; row_of_slot [slots], any row for a slot that takes no part."""
        self._device = slots.device
        self._dtype = dtype
        self.decodes = self.single = len(slots)
        self.checking = self.prefill = ()
        self.write_slots, self.write_positions = slots, positions
        self._row_of_slot = row_of_slot
        self._keys = keys
        self._in_place = COPIES * len(slots) > len(row_of_slot)
        self._masks: dict[int | None, torch.Tensor] = {}

    def on(self, device: torch.device) -> StepPlan:
        """Itself: there are no graphs over several."""
        return self

    def attend_decodes(
        self,
        call: LayerCall,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """As `StepPlan`, in one call."""
        keys, values = keys[:, :, : self._keys], values[:, :, : self._keys]
        mask = self._mask(call.window)
        if self._in_place:
            spread = call.kernel.decode(rows[self._row_of_slot], keys, values, mask)
            output.copy_(spread[self.write_slots])
        else:
            slots = self.write_slots
            output.copy_(call.kernel.decode(rows, keys[slots], values[slots], mask))

    def _mask(self, window: int | None) -> torch.Tensor:
        if window not in self._masks:
            lengths = self.lengths[self._row_of_slot] if self._in_place else self.lengths
            self._masks[window] = self._mask_beyond(lengths, self._keys, window)
        return self._masks[window]


def doubled(first: int, last: int) -> list[int]:
    """From one number, doubled, up to another, which is the last whatever it is."""
    found = []
    while first < last:
        found.append(first)
        first *= 2
    return [*found, last]

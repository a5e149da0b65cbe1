"""Attention over the slot cache, in the form transformers' AttentionInterface calls.

A step's tokens arrive packed in one row, [1, heads, T, head_dim]: decode rows first, by slot, then prompt
chunks. A `StepPlan` says once per step where each token's keys go and what it may see; each layer then
writes and attends.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional

from . import kernels
from .kv_cache import LayerShape, SlotKVCache
from .sequence import Batch, Chunk
from .transfer import send_all

GROUP_COST = 300
"""What a call costs beside its arithmetic, in tokens of one slot: decides when a shorter row is worth
padding to its neighbours' length. Measured on 2 CPU cores; the optimum is flat."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows of neighbouring slots, attended in one call over a view of the cache."""

    first_slot: int
    end_slot: int
    first_row: int
    lengths: tuple[int, ...]
    """Keys each row sees, its own included; one entry a row."""
    slots: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.slots)

    @property
    def length(self) -> int:
        return max(self.lengths)

    @property
    def has_holes(self) -> bool:
        """Whether slots between the first and the last take no part."""
        return self.rows != self.end_slot - self.first_slot


def group_decode_rows(chunks: tuple[Chunk, ...]) -> list[DecodeGroup]:
    """Split decode chunks, sorted by slot, into groups that waste little on holes and padding."""
    groups: list[DecodeGroup] = []
    for row, chunk in enumerate(chunks):
        single = DecodeGroup(chunk.slot, chunk.slot + 1, row, (chunk.end,), (chunk.slot,))
        if groups and _cost(merged := _merge(groups[-1], single)) <= _cost(groups[-1]) + _cost(single):
            groups[-1] = merged
        else:
            groups.append(single)
    return groups


def _merge(left: DecodeGroup, right: DecodeGroup) -> DecodeGroup:
    return DecodeGroup(
        left.first_slot,
        right.end_slot,
        left.first_row,
        left.lengths + right.lengths,
        left.slots + right.slots,
    )


def _cost(group: DecodeGroup) -> int:
    return GROUP_COST + (group.end_slot - group.first_slot) * group.length


class _Layout(NamedTuple):
    """A group's slots from the first to the last, holes included, and its rows."""

    lengths: torch.Tensor
    """Keys that each slot sees. A hole sees the first, whatever it is: a row without any would be NaN."""
    row_of_slot: torch.Tensor
    slot_of_row: torch.Tensor


class StepPlan:
    """Where one step's tokens are written and what they see. Lives for one forward pass."""

    native = True
    """Whether the compiled kernel, which wants numbers of the host too, may attend."""

    def __init__(self, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> None:
        self._batch = batch
        self._elsewhere: dict[torch.device, StepPlan] = {}
        self._device = device
        self._dtype = dtype
        self.decodes = len(batch.decoding)
        """Decode rows; they come first."""
        self.single = self.decodes + sum(chunk.length for chunk in batch.checking)
        """Rows that a compiled kernel attends one by one: those, and drafts, each after those before it."""
        self.checking = batch.checking
        self.prefill = batch.prefill
        chunks = batch.chunks
        rows = accumulate(chunk.length for chunk in chunks)
        self.ids, self.write_slots, self.write_positions, self.logit_rows = send_all(
            (
                [token for chunk in chunks for token in chunk.token_ids],
                [chunk.slot for chunk in chunks for _ in range(chunk.length)],
                [position for chunk in chunks for position in range(chunk.start, chunk.end)],
                [
                    row
                    for end, chunk in zip(rows, chunks, strict=True)
                    for row in range(end - chunk.logit_rows, end)
                ],
            ),
            device,
        )
        self._decode_masks: dict[int | None, list[torch.Tensor | None]] = {}
        self._prefill_masks: dict[int | None, list[torch.Tensor | None]] = {}

    @cached_property
    def groups(self) -> list[DecodeGroup]:
        """Decode rows that are attended in one call, where each is not attended by itself."""
        return group_decode_rows(self._batch.decoding)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Keys that each of the `single` rows sees, its own included: [R] int64."""
        return self.write_positions[: self.single] + 1

    @cached_property
    def chunk_rows(self) -> array[int]:
        """The first row and the number of rows of each prompt chunk, one after the other, as int64."""
        rows, first = array("q"), self.single
        for chunk in self.prefill:
            rows.extend((first, chunk.length))
            first += chunk.length
        return rows

    @cached_property
    def longest(self) -> int:
        """The largest of `lengths`."""
        return max(chunk.end for chunk in self._batch.decoding + self.checking)

    @cached_property
    def _layouts(self) -> list[_Layout]:
        """Of all groups, in one copy to the device."""
        lists = []
        for group in self.groups:
            width = group.end_slot - group.first_slot
            lengths, row_of_slot = [1] * width, [0] * width
            slot_of_row = [slot - group.first_slot for slot in group.slots]
            for row, slot in enumerate(slot_of_row):
                lengths[slot], row_of_slot[slot] = group.lengths[row], row
            lists += [lengths, row_of_slot, slot_of_row]
        sent = iter(send_all(lists, self._device))
        return [_Layout(*fields) for fields in zip(sent, sent, sent, strict=True)]

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The slot and the position of each token, [T] int32."""
        return self.write_slots.int(), self.write_positions.int()

    def on(self, device: torch.device) -> StepPlan:
        """The same plan for layers on this device: a model may be spread over several."""
        if device == self._device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = StepPlan(self._batch, device=device, dtype=self._dtype)
        return self._elsewhere[device]

    def attend_decodes(
        self,
        call: LayerCall,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Decode rows [R, heads, dim] over views of a layer's cache, into the first rows of output
        [T, heads, value_dim].
        """
        for index, (group, mask) in enumerate(zip(self.groups, self._masks_of(call.window), strict=True)):
            taken = slice(group.first_row, group.first_row + group.rows)
            where = (slice(group.first_slot, group.end_slot), slice(None), slice(group.length))
            if group.has_holes:
                _, row_of_slot, slot_of_row = self._layouts[index]
                spread = call.kernel.decode(rows[taken][row_of_slot], keys[where], values[where], mask)
                output[taken] = spread[slot_of_row]
            else:
                output[taken] = call.kernel.decode(rows[taken], keys[where], values[where], mask)

    def _masks_of(self, window: int | None) -> list[torch.Tensor | None]:
        """One additive mask a group, [slots, 1, 1, length], None where every row sees everything."""
        if window not in self._decode_masks:
            self._decode_masks[window] = [
                self._decode_mask(index, group, window) for index, group in enumerate(self.groups)
            ]
        return self._decode_masks[window]

    def prefill_masks(self, window: int | None) -> list[torch.Tensor | None]:
        """One additive mask for each chunk of `checking` and `prefill`, [length, end - first_key]; None for
        plain causal from 0.
        """
        if window not in self._prefill_masks:
            chunks = self.checking + self.prefill
            self._prefill_masks[window] = [self._prefill_mask(chunk, window) for chunk in chunks]
        return self._prefill_masks[window]

    def _decode_mask(self, index: int, group: DecodeGroup, window: int | None) -> torch.Tensor | None:
        shortest = min(group.lengths)
        windowed = window is not None and group.length > window
        if shortest == group.length and not group.has_holes and not windowed:
            return None
        return self._mask_beyond(self._layouts[index].lengths, group.length, window)

    def _mask_beyond(self, lengths: torch.Tensor, longest: int, window: int | None) -> torch.Tensor:
        """Additive mask [slots, 1, 1, longest] that leaves each slot its keys [slots], or their window."""
        ends = lengths[:, None]
        keys = torch.arange(longest, device=self._device)
        hidden = keys >= ends
        if window is not None:
            hidden |= keys < ends - window
        return _additive(hidden, self._dtype)[:, None, None, :]

    def _prefill_mask(self, chunk: Chunk, window: int | None) -> torch.Tensor | None:
        if chunk.start == 0 and (window is None or chunk.end <= window):
            return None
        first = first_key(chunk, window)
        return causal_mask(chunk.start, chunk.end, first, window, dtype=self._dtype, device=self._device)


def first_key(chunk: Chunk, window: int | None) -> int:
    """The earliest position that any token of the chunk sees."""
    return 0 if window is None else max(0, chunk.start - window + 1)


def causal_mask(
    start: int,
    end: int,
    first: int,
    window: int | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Additive mask [end - start, end - first] of queries start..end over keys first..end.

    With a window w, a query sees itself and the w - 1 tokens before it (Mistral 7B, Jiang et al. 2023).
    """
    queries = torch.arange(start, end, device=device)[:, None]
    keys = torch.arange(first, end, device=device)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return _additive(hidden, dtype)


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))


torch.library.define(
    "basaran_ops::slot_attention", "(Tensor query, Tensor key, Tensor value, int call) -> Tensor"
)


def _attention_shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: int) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


torch.library.register_fake("basaran_ops::slot_attention", _attention_shape)
SLOT_ATTENTION = torch.ops.basaran_ops.slot_attention.default
"""Stands for a layer's attention while a forward is recorded; it is never run."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a layer asks of attention, the same in every pass."""

    layer: int
    window: int | None
    kernel: Kernel


class SlotBackend(Protocol):
    """A way to attend over the slots."""

    def attend(
        self,
        call: LayerCall,
        plan: StepPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: SlotKVCache,
    ) -> torch.Tensor:
        """Store the step's keys and values, [1, kv_heads, T, dim], and attend: [1, T, heads, value_dim]."""
        ...


class SlotAttention:
    """The attention function of one runner: transformers calls it once per layer.

    A forward pass goes by `plan`. Without a cache it records each layer's shape and attends
    causally over the tokens at hand: the probe.
    """

    def __init__(self) -> None:
        self.plan: StepPlan | None = None
        self.cache: SlotKVCache | None = None
        self.backend: SlotBackend = TorchBackend()
        self.shapes: dict[int, LayerShape] = {}
        self.probed: list[LayerCall] = []
        """What the calls of the probe asked for."""
        self.calls: Sequence[LayerCall] = []
        """What the calls of the recorded forward ask for, by their numbers."""
        self._recorded: list[LayerCall] | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While a forward is recorded, a call leaves an operation that `bound` gives a meaning to."""
        self.calls = self._recorded = []
        try:
            yield
        finally:
            self._recorded = None

    @contextmanager
    def planned(self, plan: StepPlan) -> Iterator[None]:
        """A forward pass goes by this plan."""
        self.plan = plan
        try:
            yield
        finally:
            self.plan = None

    def bound(self, number: int) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """The attention of this one of `calls`."""
        return BoundAttention(self, self.calls[number])

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, T, heads, value_dim]."""
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        layer = module.layer_idx
        assert isinstance(layer, int)
        call = LayerCall(layer, sliding_window, Kernel(scale, softcap, s_aux))
        if self._recorded is not None:
            self._recorded.append(call)
            return SLOT_ATTENTION(query, key, value, len(self._recorded) - 1), None
        if self.cache is None or self.plan is None:
            self.shapes[layer] = _layer_shape(key, value)
            self.probed.append(call)
            end = query.shape[2]
            mask = causal_mask(0, end, 0, sliding_window, dtype=query.dtype, device=query.device)
            return call.kernel.prefill(query, key, value, mask).transpose(1, 2), None
        return self.attend(call, query, key, value), None

    def attend(
        self, call: LayerCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store the step's keys and values, [1, kv_heads, T, dim], and attend: [1, T, heads, value_dim]."""
        assert self.cache is not None
        assert self.plan is not None
        return self.backend.attend(call, self.plan.on(query.device), query, key, value, self.cache)


class TorchBackend:
    """By torch's operations, or on a CPU by the compiled kernel."""

    def attend(
        self,
        call: LayerCall,
        plan: StepPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: SlotKVCache,
    ) -> torch.Tensor:
        """As `SlotBackend`."""
        cache.write(
            call.layer,
            plan.write_slots,
            plan.write_positions,
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
        )
        keys, values = cache.keys[call.layer], cache.values[call.layer]
        _, heads, tokens, _ = query.shape
        output = query.new_empty(1, tokens, heads, values.shape[-1])
        native = plan.native and call.kernel.is_native(query, keys, values)
        single = plan.single if native else plan.decodes
        if single:
            rows = query[0].transpose(0, 1)[:single]
            if native:
                call.kernel.decode_slots(rows, keys, values, plan, output[0], call.window)
            else:
                plan.attend_decodes(call, rows, keys, values, output[0])
        if single < tokens:
            _attend_to_chunks(call, plan, single, query, keys, values, output[0])
        return output


class BoundAttention:
    """One layer's attention, as a recorded forward calls it."""

    __name__ = "slot_attention"

    def __init__(self, attention: SlotAttention, call: LayerCall) -> None:
        self._attend = attention.attend
        self.call = call

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self._attend(self.call, query, key, value)


def _attend_to_chunks(
    call: LayerCall,
    plan: StepPlan,
    row: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Chunks of query [1, heads, T, dim] from `row` on, one after the other, into output
    [T, heads, value_dim].
    """
    chunks = plan.checking + plan.prefill
    skipped = len(chunks) - len(plan.prefill) if row == plan.single else 0
    masks = plan.prefill_masks(call.window)
    for chunk, mask in zip(chunks[skipped:], masks[skipped:], strict=True):
        seen = (
            slice(chunk.slot, chunk.slot + 1),
            slice(None),
            slice(first_key(chunk, call.window), chunk.end),
        )
        result = call.kernel.prefill(query[:, :, row : row + chunk.length], keys[seen], values[seen], mask)
        output[row : row + chunk.length] = result[0].transpose(0, 1)
        row += chunk.length


@dataclass(frozen=True, slots=True)
class Kernel:
    """The arithmetic, with what the layer asks for: scale, logit soft-capping, attention sinks."""

    scale: float
    softcap: float | None
    sinks: torch.Tensor | None

    def is_native(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
        """Whether the compiled kernel takes this."""
        heads, kv_heads = query.shape[1], keys.shape[1]
        same = kv_heads == values.shape[1] and heads % kv_heads == 0 and query.dtype == keys.dtype
        return same and kernels.supports(query)

    def decode_slots(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        plan: StepPlan,
        output: torch.Tensor,
        window: int | None,
    ) -> None:
        """Query [R, heads, dim] over a layer's whole cache, into the first rows of output."""
        kernels.decode_attention(
            query,
            keys,
            values,
            plan.write_slots,
            plan.lengths,
            output,
            longest=plan.longest,
            scale=self.scale,
            window=window,
            softcap=self.softcap,
            sinks=None if self.sinks is None else self.sinks.float(),
        )

    def decode(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Query [R, heads, dim], key and value [R, kv_heads, L, dim] -> [R, heads, value_dim].

        Query heads that share a key head become rows of one product: keys are never repeated.
        """
        rows, heads, dim = query.shape
        folded = query.reshape(rows, key.shape[1], heads // key.shape[1], dim)
        sinks = None if self.sinks is None else self.sinks.view(1, key.shape[1], -1, 1)
        return self._weigh(folded, key, value, mask, sinks).reshape(rows, heads, -1)

    def prefill(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Query [1, heads, T, dim], key and value [1, kv_heads, L, dim], mask [T, L] or None for causal
        over T = L -> [1, heads, T, value_dim].
        """
        groups = query.shape[1] // key.shape[1]
        if self.softcap is None and self.sinks is None:
            return functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=self.scale,
                enable_gqa=groups > 1,
            )
        if mask is None:
            end = query.shape[2]
            mask = causal_mask(0, end, 0, None, dtype=query.dtype, device=query.device)
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        sinks = None if self.sinks is None else self.sinks.view(1, -1, 1, 1)
        return self._weigh(query, key, value, mask, sinks)

    def _weigh(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        scores = torch.matmul(query * self.scale, key.transpose(-1, -2))
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        if sinks is None:
            weights = torch.softmax(scores, dim=-1)
        else:
            # A sink takes part in the softmax and carries no value (OpenAI, gpt-oss model card, 2025).
            column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
            weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
        return torch.matmul(weights, value)


def _layer_shape(key: torch.Tensor, value: torch.Tensor) -> LayerShape:
    return LayerShape(key.shape[1], key.shape[3], value.shape[1], value.shape[3], key.dtype, key.device)

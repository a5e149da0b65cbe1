from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from basaran_ops.engine.attention import GROUP_COST, StepPlan, causal_mask, group_decode_rows
from basaran_ops.engine.sequence import Batch, Chunk, Sequence
from basaran_ops.sampling_params import SamplingParams


def chunk(slot: int, length: int) -> Chunk:
    return Chunk(Sequence(slot, (1,), SamplingParams(), None), slot, length - 1, 1)


def test_neighbours_of_like_length_are_attended_in_one_call() -> None:
    (group,) = group_decode_rows(tuple(chunk(slot, 100 + slot) for slot in range(8)))
    assert (group.first_slot, group.end_slot, group.length, group.has_holes) == (0, 8, 107, False)


def test_a_long_row_is_not_paid_for_by_its_short_neighbours() -> None:
    lengths = [50, 60, 8000, 70]
    groups = group_decode_rows(tuple(chunk(slot, length) for slot, length in enumerate(lengths)))
    assert [group.slots for group in groups] == [(0, 1), (2,), (3,)]


def test_a_small_hole_is_covered_and_a_large_one_is_not() -> None:
    near = group_decode_rows((chunk(0, 100), chunk(2, 100)))
    far = group_decode_rows((chunk(0, 100), chunk(9, 100)))
    assert [group.has_holes for group in near] == [True]
    assert len(far) == 2


@given(st.dictionaries(st.integers(0, 63), st.integers(1, 4000), min_size=1))
def test_groups_cover_every_row_once_and_never_cost_more_than_single_calls(rows: dict[int, int]) -> None:
    chunks = tuple(chunk(slot, rows[slot]) for slot in sorted(rows))
    groups = group_decode_rows(chunks)
    assert [slot for group in groups for slot in group.slots] == sorted(rows)
    assert [length for group in groups for length in group.lengths] == [rows[slot] for slot in sorted(rows)]
    cost = sum(GROUP_COST + (g.end_slot - g.first_slot) * g.length for g in groups)
    assert cost <= sum(GROUP_COST + length for length in rows.values())


def test_a_window_of_two_sees_itself_and_one_before() -> None:
    mask = causal_mask(2, 4, 0, 2, dtype=torch.float32, device=torch.device("cpu"))
    assert mask.isinf().tolist() == [[True, False, False, True], [True, True, False, False]]


def test_layers_on_another_device_get_the_same_plan_there_once_a_step() -> None:
    sequence = Sequence(0, (1, 2, 3, 4, 5), SamplingParams(), None)
    batch = Batch((), (Chunk(sequence, 0, 1, 4),))
    plan = StepPlan(batch, device=torch.device("cpu"), dtype=torch.float32)
    elsewhere = torch.device("meta")
    assert plan.on(torch.device("cpu")) is plan
    there = plan.on(elsewhere)
    assert there is plan.on(elsewhere)
    assert there.write_positions.device == elsewhere
    (mask,) = there.prefill_masks(None)
    assert mask is not None
    assert mask.device == elsewhere

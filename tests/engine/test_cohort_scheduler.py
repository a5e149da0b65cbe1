from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basaran_ops.engine.cohort_scheduler import CohortAbilities, CohortScheduler
from basaran_ops.engine.sequence import Batch, Sequence
from basaran_ops.sampling_params import SamplingParams

ALL = CohortAbilities(batches=True, pads=True, chunks=True, interleaves=True)


def scheduler(
    slots: int = 4, token_budget: int = 16, completion_length: int | None = None, **lacking: bool
) -> CohortScheduler:
    able = {name: getattr(ALL, name) for name in CohortAbilities.__slots__} | lacking
    return CohortScheduler(
        abilities=CohortAbilities(**able),
        slots=slots,
        token_budget=token_budget,
        context_length=64,
        completion_length=completion_length,
        eos_token_ids=[99],
    )


def add(
    s: CohortScheduler,
    number: int,
    length: int = 3,
    max_tokens: int = 5,
    adapter: str | None = None,
    **fields: object,
) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, **fields)  # type: ignore[arg-type]
    sequence = Sequence(number, tuple(range(length)), params, None, adapter)
    s.add(sequence)
    return sequence


def step(s: CohortScheduler, token: int = 7) -> Batch:
    batch = s.schedule()
    s.update(batch, [token] * len(batch.sampling))
    return batch


def ids(batch: Batch) -> list[int]:
    return [chunk.sequence.id for chunk in batch.chunks]


def test_what_waits_is_one_cohort_whose_prompts_are_read_at_once() -> None:
    s = scheduler()
    for number, length in enumerate((3, 1, 4)):
        add(s, number, length)
    batch = step(s)
    assert ids(batch) == [0, 1, 2]
    assert [chunk.length for chunk in batch.prefill] == [3, 1, 4]
    assert len(step(s).decoding) == 3


def test_what_comes_later_is_another_cohort_and_they_take_turns() -> None:
    s = scheduler()
    add(s, 0)
    step(s)
    add(s, 1)
    add(s, 2)
    assert [ids(step(s)) for _ in range(5)] == [[0], [1, 2], [0], [1, 2], [0]]


def test_a_newcomer_waits_for_no_more_than_a_turn_of_each_cohort() -> None:
    s = scheduler()
    for number in range(3):
        add(s, number, max_tokens=50)
        step(s)
    add(s, 3)
    assert [3] in [ids(step(s)) for _ in range(4)]


def test_padded_prompts_take_no_more_tokens_than_the_budget() -> None:
    s = scheduler(token_budget=16)
    for number, length in enumerate((8, 7, 2, 2)):
        add(s, number, length)
    assert [ids(step(s)) for _ in range(2)] == [[0, 1], [2, 3]]


def test_a_long_prompt_is_a_cohort_of_its_own_read_in_chunks_while_others_go_on() -> None:
    s = scheduler(token_budget=16)
    add(s, 0, 40)
    add(s, 1, 2)
    steps = [step(s) for _ in range(6)]
    assert [ids(batch) for batch in steps] == [[0], [1], [0], [1], [0], [1]]
    assert [steps[i].prefill[0].length for i in (0, 2, 4)] == [16, 16, 8]


def test_a_long_prompt_is_read_whole_where_it_cannot_be_split() -> None:
    s = scheduler(token_budget=16, chunks=False)
    add(s, 0, 40)
    assert step(s).prefill[0].length == 40


def test_a_prompt_that_is_scored_is_a_cohort_of_its_own() -> None:
    s = scheduler()
    add(s, 0)
    add(s, 1, logprobs=1, prompt_logprobs=True)
    add(s, 2)
    assert [ids(step(s)) for _ in range(2)] == [[0, 2], [1]]


def test_a_cohort_is_of_one_adapter() -> None:
    s = scheduler()
    for number, adapter in enumerate((None, "a", "b", "a")):
        add(s, number, adapter=adapter)
    assert [ids(step(s)) for _ in range(4)] == [[0], [1, 3], [2], [0]]


def test_only_equal_lengths_share_a_batch_where_padding_shows() -> None:
    s = scheduler(pads=False)
    for number, length in enumerate((3, 2, 3)):
        add(s, number, length)
    assert [ids(step(s)) for _ in range(2)] == [[0, 2], [1]]


def test_each_is_alone_where_nothing_can_share_a_batch() -> None:
    s = scheduler(batches=False, pads=False)
    for number in range(3):
        add(s, number)
    assert [ids(step(s)) for _ in range(3)] == [[0], [1], [2]]


def test_one_cohort_ends_before_the_next_begins_where_they_cannot_take_turns() -> None:
    s = scheduler(interleaves=False)
    add(s, 0, max_tokens=2)
    step(s)
    add(s, 1, max_tokens=2)
    assert [ids(step(s)) for _ in range(3)] == [[0], [1], [1]]
    assert not s.has_work


def test_a_completion_with_a_context_of_its_own_may_fill_it_after_a_full_prompt() -> None:
    s = scheduler(completion_length=8, token_budget=64)
    sequence = add(s, 0, 64, max_tokens=8)
    for _ in range(8):
        step(s)
    assert (sequence.num_output, s.has_work) == (8, False)
    with pytest.raises(ValueError, match="does not fit"):
        add(s, 1, 65)


@settings(max_examples=200)
@given(st.data())
def test_slots_are_conserved_every_sequence_ends_once_and_nobody_starves(data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, 5))
    lacking = data.draw(
        st.fixed_dictionaries({name: st.booleans() for name in ("pads", "chunks", "interleaves")})
    )
    s = scheduler(slots=slots, token_budget=data.draw(st.integers(slots, 12)), **lacking)
    lengths: dict[int, tuple[int, int]] = {}
    tokens: dict[int, list[int]] = {}
    ended: list[int] = []
    last_turn: dict[int, int] = {}
    added = turn = 0
    while added < 12 or s.has_work:
        action = data.draw(st.sampled_from(["add", "step", "step", "cancel"]))
        if action == "add" and added < 12:
            lengths[added] = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
            add(s, added, *lengths[added], adapter=data.draw(st.sampled_from([None, "a", "b"])))
            added += 1
        elif action == "cancel" and added:
            output = s.cancel(data.draw(st.integers(0, added - 1)))
            ended += [] if output is None else [output.sequence_id]
        elif s.has_work:
            turn += 1
            batch = s.schedule()
            assert batch.chunks, "work, and an empty batch"
            assert batch.cohort is not None
            assert not (batch.decoding and batch.prefill), "a cohort steps as one"
            assert len({chunk.sequence.adapter for chunk in batch.chunks}) == 1, "a step of several adapters"
            for chunk in batch.chunks:
                assert chunk.start == chunk.sequence.num_computed
                last_turn[chunk.sequence.id] = turn
            drawn = [data.draw(st.sampled_from([7, 7, 99])) for _ in batch.sampling]
            for output in s.update(batch, drawn):
                assert output.sequence_id not in ended, "a token after the end"
                tokens.setdefault(output.sequence_id, []).extend(output.token_ids)
                ended += [output.sequence_id] if output.finish_reason else []
            for number in s.running:
                assert turn - last_turn.setdefault(number, turn) <= slots, "starved"
        assert s.free_slots == slots - len(s.running)
    s.check_idle()
    assert sorted(ended) == list(range(12))
    assert all(len(got) <= lengths[number][1] for number, got in tokens.items())

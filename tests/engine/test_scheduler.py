from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basaran_ops.engine import prefix_cache as prefix_cache_module
from basaran_ops.engine.packed_scheduler import PackedScheduler
from basaran_ops.engine.sequence import Batch, Sequence
from basaran_ops.sampling_params import SamplingParams


def scheduler(slots: int = 4, token_budget: int = 8, context_length: int = 64) -> PackedScheduler:
    return PackedScheduler(
        slots=slots, token_budget=token_budget, context_length=context_length, eos_token_ids=[99]
    )


def sequence(number: int, length: int = 3, max_tokens: int = 5, adapter: str | None = None) -> Sequence:
    return Sequence(number, tuple(range(length)), SamplingParams(max_tokens=max_tokens), None, adapter)


def step(scheduler: PackedScheduler, token: int = 7) -> dict[int, str | None]:
    batch = scheduler.schedule()
    outputs = scheduler.update(batch, [token] * len(batch.sampling))
    return {output.sequence_id: output.finish_reason for output in outputs}


def test_first_come_first_served() -> None:
    s = scheduler(slots=2)
    for number in range(4):
        s.add(sequence(number, max_tokens=1))
    assert list(step(s)) == [0, 1]
    assert list(step(s)) == [2, 3]


def test_a_long_prompt_is_read_in_chunks_while_others_decode() -> None:
    s = scheduler(token_budget=8)
    s.add(sequence(0, length=1, max_tokens=20))
    step(s)
    s.add(sequence(1, length=20))
    sizes = []
    for _ in range(3):
        batch = s.schedule()
        sizes.append([chunk.length for chunk in batch.chunks])
        s.update(batch, [7] * len(batch.sampling))
    assert sizes == [[1, 7], [1, 7], [1, 6]]


def test_a_batch_never_exceeds_its_budget_and_a_full_pool_still_decodes() -> None:
    s = scheduler(slots=4, token_budget=4)
    for number in range(4):
        s.add(sequence(number, length=9, max_tokens=3))
    while s.has_work:
        batch = s.schedule()
        assert 0 < batch.num_tokens <= 4
        s.update(batch, [7] * len(batch.sampling))
    s.check_idle()


def test_a_budget_below_the_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget 3 is below slots 4"):
        scheduler(slots=4, token_budget=3)


@pytest.mark.parametrize("length", [0, 64, 65])
def test_a_prompt_that_leaves_no_room_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        scheduler().add(sequence(0, length=length))


def test_eos_on_the_last_allowed_token_is_stop() -> None:
    s = scheduler()
    s.add(sequence(0, max_tokens=1))
    assert step(s, token=99) == {0: "stop"}


def test_a_cancelled_sequence_ends_once_and_frees_its_slot() -> None:
    s = scheduler(slots=1)
    s.add(sequence(0))
    s.add(sequence(1))
    step(s)
    waiting, running = s.cancel(1), s.cancel(0)
    assert waiting is not None
    assert running is not None
    assert (waiting.finish_reason, running.finish_reason) == ("abort", "abort")
    assert s.cancel(0) is None
    assert s.cancel(1) is None
    s.check_idle()


def test_adapters_take_turns_and_a_step_is_of_one() -> None:
    s = scheduler()
    for number, adapter in enumerate(("a", None, "a", "b")):
        s.add(sequence(number, max_tokens=2, adapter=adapter))
    assert [list(step(s)) for _ in range(6)] == [[0, 2], [1], [3], [0, 2], [1], [3]]
    assert not s.has_work


def test_an_adapter_that_comes_later_has_the_next_step() -> None:
    s = scheduler()
    for number, adapter in enumerate(("a", "b")):
        s.add(sequence(number, max_tokens=9, adapter=adapter))
    assert [list(step(s)) for _ in range(2)] == [[0], [1]]
    s.add(sequence(2, max_tokens=9, adapter="c"))
    assert [list(step(s)) for _ in range(4)] == [[0], [1], [2], [0]]


def test_a_leaked_slot_is_noticed() -> None:
    s = scheduler()
    s.cache.slots.take(3)
    with pytest.raises(RuntimeError, match="1 slots leaked"):
        s.check_idle()


class SlotContents:
    """What a KV cache would hold after the same copies and writes: instead of keys and values tokens, and the
    adapter that computed each.
    """

    def __init__(self, slots: int) -> None:
        self.tokens: list[list[tuple[str | None, int]]] = [[] for _ in range(slots)]

    def run(self, batch: Batch) -> None:
        for copy in batch.copies:
            held = self.tokens[copy.source][: copy.length]
            assert len(held) == copy.length, "a copy of what was never computed"
            self.tokens[copy.target][: copy.length] = held
        for chunk in batch.chunks:
            held = self.tokens[chunk.slot]
            wanted = [(chunk.sequence.adapter, token) for token in chunk.sequence.tokens]
            assert held[: chunk.start] == wanted[: chunk.start], "computed behind another sequence's tokens"
            held[chunk.start : chunk.end] = wanted[chunk.start : chunk.end]


class Waits:
    """For how many steps each adapter that has a running sequence has had none."""

    def __init__(self) -> None:
        self.steps: dict[str | None, int] = {}

    def note(self, running: Iterable[Sequence], batch: Batch) -> None:
        waiting = {sequence.adapter for sequence in running} - {batch.adapter}
        self.steps = {adapter: self.steps.get(adapter, 0) + 1 for adapter in waiting}


ADAPTERS = (None, "a", "b")


@pytest.mark.parametrize("prefix_cache", [True, False])
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_slots_are_conserved_every_sequence_ends_once_on_its_own_tokens_and_no_adapter_starves(
    monkeypatch: pytest.MonkeyPatch, prefix_cache: bool, data: st.DataObject
) -> None:
    monkeypatch.setattr(prefix_cache_module, "LEAST_SHARED", 2)
    slots = data.draw(st.integers(1, 5))
    budget = data.draw(st.integers(slots, 12))
    s = PackedScheduler(
        slots=slots, token_budget=budget, context_length=16, eos_token_ids=[99], prefix_cache=prefix_cache
    )
    contents = SlotContents(slots)
    waits = Waits()
    ended: list[int] = []
    lengths: dict[int, tuple[int, int]] = {}
    tokens: dict[int, int] = {}
    added = 0
    while added < 12 or s.has_work:
        action = data.draw(st.sampled_from(["add", "step", "step", "cancel"]))
        if action == "add" and added < 12:
            # Two tokens only, so that many prompts begin alike.
            prompt = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=15))
            lengths[added] = len(prompt), data.draw(st.integers(1, 8))
            params = SamplingParams(max_tokens=lengths[added][1])
            s.add(Sequence(added, tuple(prompt), params, None, data.draw(st.sampled_from(ADAPTERS))))
            added += 1
        elif action == "cancel" and added:
            output = s.cancel(data.draw(st.integers(0, added - 1)))
            ended += [] if output is None else [output.sequence_id]
        elif s.has_work:
            batch = s.schedule()
            assert batch.chunks, "work, and an empty batch"
            assert len({chunk.sequence.adapter for chunk in batch.chunks}) == 1, "a step of several adapters"
            contents.run(batch)
            waits.note(s.running.values(), batch)
            assert max(waits.steps.values(), default=0) < len(ADAPTERS), "an adapter starves"
            drawn = [data.draw(st.sampled_from([1, 2, 7, 99])) for _ in batch.sampling]
            for output in s.update(batch, drawn):
                assert output.sequence_id not in ended, "a token after the end"
                tokens[output.sequence_id] = tokens.get(output.sequence_id, 0) + 1
                ended += [output.sequence_id] if output.finish_reason else []
        taken = [q.slot for q in s.running.values()]
        assert sorted([*taken, *s.cache.slots.free]) == list(range(slots)), "slots are not conserved"
    s.check_idle()
    assert sorted(ended) == list(range(12))
    for number, count in tokens.items():
        length, limit = lengths[number]
        assert count <= min(limit, 16 - length)
    assert prefix_cache or s.cache.hits == 0

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from basaran_ops.engine.packed_scheduler import PackedScheduler
from basaran_ops.engine.prefix_cache import PrefixCache
from basaran_ops.engine.scheduler import Scheduler
from basaran_ops.engine.sequence import Batch, Copy, Sequence
from basaran_ops.engine.slots import Slots
from basaran_ops.sampling_params import SamplingParams

from .effort import EFFORT, examples
from .scheduler import ADAPTERS, CONTEXT, STOP, drive, new_checked, small_limits

SEEDS = st.integers(0, 2**16)


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    with small_limits():
        yield


class Machine(RuleBasedStateMachine):
    """Hypothesis's way to a short story, where a long run would fail."""

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.checked = new_checked(Random(seed))
        self.prompt: tuple[int, ...] = (1,)

    @rule(
        kept=st.integers(0, CONTEXT),
        more=st.lists(st.integers(1, 3), max_size=CONTEXT + 1),
        choices=st.integers(1, 3),
        max_tokens=st.integers(0, 12),
        ignore_eos=st.booleans(),
        stops=st.booleans(),
        scored=st.booleans(),
        greedy=st.booleans(),
        adapter=st.sampled_from(ADAPTERS),
    )
    def add(
        self,
        kept: int,
        more: list[int],
        choices: int,
        max_tokens: int,
        ignore_eos: bool,
        stops: bool,
        scored: bool,
        greedy: bool,
        adapter: str | None,
    ) -> None:
        self.prompt = self.prompt[:kept] + tuple(more)
        params = SamplingParams(
            max_tokens=max_tokens if scored else max(1, max_tokens),
            temperature=0 if greedy else 1,
            ignore_eos=ignore_eos,
            stop_token_ids=(STOP,) if stops else (),
            logprobs=1 if scored else None,
            prompt_logprobs=scored,
        )
        for _ in range(choices):
            self.checked.add(self.prompt, params, adapter)

    @rule(number=st.integers(0, 30))
    def cancel(self, number: int) -> None:
        self.checked.cancel(number)

    @precondition(lambda self: self.checked.scheduler.has_work)
    @rule(seed=SEEDS, count=st.integers(1, 5))
    def steps(self, seed: int, count: int) -> None:
        random = Random(seed)
        for _ in range(count):
            if self.checked.scheduler.has_work:
                self.checked.step(random)

    @precondition(lambda self: self.checked.scheduler.has_work)
    @rule(seed=SEEDS)
    def step_out_of_memory(self, seed: int) -> None:
        self.checked.step_out_of_memory(Random(seed))

    @precondition(lambda self: self.checked.scheduler.has_work)
    @rule(seed=SEEDS)
    def step_with_no_numbers(self, seed: int) -> None:
        self.checked.step_with_no_numbers(Random(seed))

    def teardown(self) -> None:
        if hasattr(self, "checked"):
            self.checked.finish(Random(0))


def test_a_scheduler_keeps_its_promises_in_every_short_story() -> None:
    run_state_machine_as_test(Machine, settings=examples(300, stateful_step_count=40))


def test_a_scheduler_keeps_its_promises_in_long_runs() -> None:
    seen = drive(60_000 * EFFORT, seed=1)
    print(dict(seen))
    happened = {"stop", "length", "refused", "cancelled", "cancelled while waiting", "several adapters"}
    happened |= {"shared", "copies", "waits for its leader", "no numbers", "cohorts of several"}
    happened |= {"out of memory", "out of memory with copies"}
    happened |= {"drafts", "drafts come true", "an end among drafts"}
    assert happened <= {what for what, times in seen.items() if times > 10}


def _share_one_more(cache: PrefixCache, sequence: Sequence, length: int) -> None:
    sequence.num_computed = sequence.num_cached = length + 1
    cache.hits += length + 1


def _forget_adapters(slots: Slots, wanted: object) -> tuple[int, int]:
    from basaran_ops.engine.slots import common_prefix

    found = ((slot, common_prefix(wanted.tokens, kept.tokens)) for slot, kept in slots._free.items())
    return max(found, key=lambda each: each[1])


def _keep_all(cache: PrefixCache, sequence: Sequence) -> None:
    from basaran_ops.engine.slots import Kept

    cache.slots.give_back(sequence.slot, Kept(list(sequence.tokens), sequence.adapter))
    sequence.slot = None


def _copies_backwards(cache: PrefixCache) -> tuple[Copy, ...]:
    copies, cache._copies = tuple(reversed(cache._copies)), []
    return copies


def _fail_one_only(scheduler: Scheduler, batch: Batch) -> list[Sequence]:
    return [batch.chunks[-1].sequence]


def _admit_the_last(scheduler: PackedScheduler) -> None:
    while scheduler.waiting and scheduler.cache.slots.free:
        sequence = scheduler.waiting.pop()
        scheduler.cache.place(sequence, scheduler.running.values())
        scheduler.running[sequence.id] = sequence


def _append_all(
    scheduler: Scheduler, sequence: Sequence, computed: int, drawn: tuple[int, ...]
) -> tuple[tuple[int, ...], object]:
    for token in drawn:
        sequence.append(token)
    sequence.num_computed = computed + len(drawn) - 1
    return drawn, scheduler._finish_reason(sequence, drawn[-1:])


def _keep_wrong_drafts(
    scheduler: Scheduler, sequence: Sequence, computed: int, drawn: tuple[int, ...]
) -> tuple[tuple[int, ...], object]:
    told = APPEND(scheduler, sequence, computed, drawn)
    if len(drawn) > 1:
        sequence.num_computed += 1
    return told


APPEND = Scheduler._append


@pytest.mark.parametrize(
    ("kind", "method", "defect", "told"),
    [
        (
            PrefixCache,
            "_share",
            _share_one_more,
            "another sequence's tokens|more than there are|nobody computed",
        ),
        (Slots, "find", _forget_adapters, "another sequence's tokens"),
        (PrefixCache, "release", _keep_all, "another sequence's tokens|never computed|failed step"),
        (PrefixCache, "take_copies", _copies_backwards, "another sequence's tokens|never computed"),
        (Scheduler, "last_to_ask", _fail_one_only, "another sequence's tokens|failed step"),
        (PackedScheduler, "_admit", _admit_the_last, "overtaken|another order"),
        (Scheduler, "_append", _append_all, "behind the end"),
        (Scheduler, "_append", _keep_wrong_drafts, "not where the cache ends|a stream that stalls"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_with_a_scheduler_is_seen(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, defect: Callable[..., object], told: str
) -> None:
    monkeypatch.setattr(kind, method, defect)
    with pytest.raises(AssertionError, match=told):
        drive(60_000, seed=2)

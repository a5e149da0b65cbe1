from __future__ import annotations

from collections.abc import Iterable

import pytest

from basaran_ops.engine.packed_scheduler import PackedScheduler
from basaran_ops.engine.sequence import Copy, Sequence
from basaran_ops.engine.slots import common_prefix
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import generate, tiny_model
from .engines import drain, packed_engine

SYSTEM = tuple(range(100, 140))


def scheduler(slots: int = 4) -> PackedScheduler:
    return PackedScheduler(slots=slots, token_budget=64, context_length=256, eos_token_ids=())


def add(
    s: PackedScheduler, number: int, prompt: Iterable[int], max_tokens: int = 4, adapter: str | None = None
) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    sequence = Sequence(number, tuple(prompt), params, None, adapter)
    s.add(sequence)
    return sequence


def step(s: PackedScheduler) -> tuple[Copy, ...]:
    batch = s.schedule()
    s.update(batch, [7] * len(batch.sampling))
    return batch.copies


def finish(s: PackedScheduler) -> None:
    while s.has_work:
        step(s)


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [([], [1], 0), ([1], [2], 0), ([1], [1], 1), ([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2)],
)
def test_a_common_prefix_is_counted(left: list[int], right: list[int], shared: int) -> None:
    assert common_prefix(left, right) == shared
    assert common_prefix(tuple(right), tuple(left)) == shared


def test_a_conversation_goes_on_in_the_slot_it_left() -> None:
    s = scheduler()
    add(s, 0, SYSTEM)
    finish(s)
    second = add(s, 1, (*SYSTEM, 7, 7, 7, 50, 51))
    assert step(s) == ()
    assert second.num_cached == len(SYSTEM) + 3, "the answer's tokens are there too"
    assert second.slot == 0


def test_what_two_conversations_share_is_copied_and_the_first_one_kept() -> None:
    s = scheduler()
    add(s, 0, (*SYSTEM[:20], *range(60)))
    finish(s)
    second = add(s, 1, (*SYSTEM[:20], 90, 91))
    assert step(s) == (Copy(0, 1, 20),)
    finish(s)
    assert second.num_cached == 20
    again = add(s, 2, (*SYSTEM[:20], *range(60), 92))
    step(s)
    assert again.num_cached == 80


def test_choices_of_one_prompt_compute_it_once() -> None:
    s = scheduler()
    choices = [add(s, number, (*range(100), *range(100))) for number in range(4)]
    computed = 0
    copies: list[Copy] = []
    while any(choice.num_output == 0 for choice in choices):
        batch = s.schedule()
        computed += batch.num_tokens
        copies += batch.copies
        s.update(batch, [7] * len(batch.sampling))
    assert copies == [Copy(0, target, 199) for target in (1, 2, 3)]
    assert computed < 200 + 4 * 5
    assert [choice.num_cached for choice in choices] == [0, 199, 199, 199]


def test_a_sequence_whose_leader_ends_takes_what_it_left() -> None:
    s = scheduler()
    add(s, 0, range(200), max_tokens=1)
    follower = add(s, 1, range(200))
    finish(s)
    assert follower.num_cached == 199


def test_a_sequence_whose_leader_is_cancelled_goes_on_from_there() -> None:
    s = scheduler()
    add(s, 0, range(200))
    follower = add(s, 1, range(200))
    step(s)
    s.cancel(0)
    assert step(s) == (Copy(0, 1, 64),)
    assert (follower.num_cached, follower.num_computed) == (64, 128)


def test_what_another_adapter_has_computed_is_not_shared() -> None:
    s = scheduler()
    add(s, 0, SYSTEM)
    finish(s)
    running = [add(s, number, SYSTEM, adapter=adapter) for number, adapter in ((1, "a"), (2, "b"), (3, "b"))]
    finish(s)
    assert [sequence.num_cached for sequence in running] == [0, 0, len(SYSTEM) - 1]
    again = [add(s, number, SYSTEM, adapter=adapter) for number, adapter in ((4, None), (5, "a"))]
    finish(s)
    assert [sequence.num_cached for sequence in again] == [len(SYSTEM) - 1] * 2


def test_a_prompt_that_is_scored_is_computed_whole() -> None:
    s = scheduler()
    add(s, 0, SYSTEM)
    finish(s)
    params = SamplingParams(max_tokens=1, logprobs=1, prompt_logprobs=True)
    scored = Sequence(1, SYSTEM, params, None)
    s.add(scored)
    step(s)
    assert scored.num_cached == 0
    assert s.cache.queries == len(SYSTEM)


def test_the_slot_that_was_useless_for_longest_is_given_up_first() -> None:
    s = scheduler(slots=2)
    for number, start in enumerate((0, 50)):
        add(s, number, range(start, start + 40))
        finish(s)
    add(s, 2, range(40))
    finish(s)
    add(s, 3, range(100, 140))
    finish(s)
    kept = add(s, 4, range(40))
    step(s)
    assert kept.num_cached == 39


def test_a_scheduler_without_it_computes_everything() -> None:
    s = PackedScheduler(slots=4, token_budget=64, context_length=256, eos_token_ids=(), prefix_cache=False)
    for number in range(2):
        add(s, number, SYSTEM)
        assert step(s) == ()
    assert (s.cache.queries, s.cache.hits) == (0, 0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_shared_beginnings_change_no_token(name: str) -> None:
    model = tiny_model(name)
    prompts = [(*SYSTEM[: 20 + number % 3 * 10], *range(number, number + 5)) for number in range(12)]
    expected = [generate(model, prompt, 8) for prompt in prompts]
    engine = packed_engine(model, slots=4)
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, SamplingParams(max_tokens=8, temperature=0), None)
    tokens = drain(engine)
    assert [tokens[number] for number in range(12)] == expected
    assert engine.stats.prefix_hits > 100

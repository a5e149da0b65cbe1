"""Schedulers under any load, beside a model of what they promise.

`python -m tests.fuzz.scheduler 1000000` does so many steps.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from unittest.mock import patch

from basaran_ops.engine import cohort_scheduler, packed_scheduler, prefix_cache
from basaran_ops.engine.cohort_scheduler import CohortAbilities, CohortScheduler
from basaran_ops.engine.logprobs import Scores
from basaran_ops.engine.pace import LEAST
from basaran_ops.engine.packed_scheduler import PackedScheduler
from basaran_ops.engine.scheduler import Scheduler
from basaran_ops.engine.sequence import Batch, Chunk
from basaran_ops.engine.sequence import Sequence as EngineSequence
from basaran_ops.outputs import SequenceOutput, TokenLogprob
from basaran_ops.sampling_params import SamplingParams

EOS, STOP = 99, 50
TOKENS = (1, 1, 2, 2, 3, 7, STOP, EOS)
PROMPT_TOKENS = (*(1, 2, 3) * 4, STOP)
ADAPTERS = (None, "a", "b")
CONTEXT = 40
SCORED = 5
"""Tokens of a step that may want logits; few, so that the limit is met."""
GARBAGE = -1
"""In a slot: nobody knows what a step that failed has left there."""


@contextmanager
def small_limits() -> Iterator[None]:
    """Share short beginnings, and score few tokens at a time."""
    with (
        patch.object(prefix_cache, "LEAST_SHARED", 2),
        patch.object(packed_scheduler, "SCORED_TOKENS", SCORED),
        patch.object(cohort_scheduler, "SCORED_TOKENS", SCORED),
    ):
        yield


class Steps:
    """All that is known here of what a chunk holds and of how many tokens it gets."""

    @staticmethod
    def sample(batch: Batch, random: Random) -> tuple[list[int], dict[int, list[int]]]:
        """A token for each that gets one, and what follows it where drafts came true."""
        sampled, further = [], {}
        for chunk in batch.sampling:
            guesses = [*chunk.drafts, random.choice(TOKENS)]
            drawn = [guesses[0] if random.random() < 0.7 else random.choice(TOKENS)]
            for draft, guess in pairwise(guesses):
                if draft != drawn[-1]:
                    break
                drawn.append(guess if random.random() < 0.7 else random.choice(TOKENS))
            sampled.append(drawn[0])
            if chunk.drafts:
                further[chunk.sequence.id] = drawn[1:]
        return sampled, further

    @staticmethod
    def written(chunk: Chunk, tokens: Sequence[int]) -> Sequence[int]:
        """What the chunk leaves in its slot, of a sequence with these tokens."""
        return [*tokens[chunk.start : Steps.known_end(chunk)], *chunk.drafts]

    @staticmethod
    def known_end(chunk: Chunk) -> int:
        """Where the tokens end that are no guesses."""
        return chunk.end - len(chunk.drafts)

    @staticmethod
    def next_start(chunk: Chunk, new: Sequence[int]) -> int:
        """Where the sequence's next chunk must begin, once it has got these tokens."""
        return Steps.known_end(chunk) + max(0, len(new) - 1)

    @staticmethod
    def room(batch: Batch, scheduler: Scheduler) -> int:
        """Prompt tokens that the step could have read whatever its pace is."""
        streams = batch.decoding + batch.checking
        left = scheduler.token_budget - len(streams)
        return min(left, LEAST) if streams else left

    @staticmethod
    def decodes(asked: Asked) -> bool:
        """Whether a sequence has one pending token."""
        return asked.next_start is not None and len(asked.tokens) - asked.next_start == 1


@dataclass
class Asked:
    """A sequence as whoever asked for it sees it."""

    sequence: EngineSequence
    prompt: tuple[int, ...]
    tokens: list[int]
    """Prompt, then all that was sampled."""
    told: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    first_start: int | None = None
    next_start: int | None = None
    has_output: bool = False
    ended: str | None = None
    admitted: int | None = None
    """The step that admitted it."""
    last_step: int = 0

    @property
    def params(self) -> SamplingParams:
        return self.sequence.params

    @property
    def adapter(self) -> str | None:
        return self.sequence.adapter


class Checked:
    """A scheduler, and after each thing that is done to it whether it keeps its promises."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        prefix_cache: bool = False,
        interleaves: bool = True,
        speculates: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.steps = 0
        self.seen: Counter[str] = Counter()
        """What has happened, so that a run can tell that it met everything."""
        self.asked: dict[int, Asked] = {}
        self._packed = isinstance(scheduler, PackedScheduler)
        self._prefix_cache = prefix_cache
        self._interleaves = interleaves
        self._speculates = speculates
        self._slots: list[list[tuple[str | None, int]]] = [[] for _ in range(scheduler.slots)]
        self._waits: dict[str | None, int] = {}
        self._cohort: object = None

    # -- what can be done to it -----------------------------------------------------------------------

    def add(self, prompt: tuple[int, ...], params: SamplingParams, adapter: str | None = None) -> None:
        number = len(self.asked)
        sequence = EngineSequence(number, prompt, params, None, adapter)
        separate = self.scheduler.completion_length is not None
        room = self.scheduler.context_length - (0 if separate else min(1, params.max_tokens))
        try:
            self.scheduler.add(sequence)
        except ValueError:
            assert not 0 < len(prompt) <= room, "refused, although there is room"
            self.seen["refused"] += 1
        else:
            assert 0 < len(prompt) <= room, "taken, although there is no room"
            self.asked[number] = Asked(sequence, prompt, list(prompt))
        self._check_slots()

    def cancel(self, number: int) -> None:
        asked = self.asked.get(number)
        output = self.scheduler.cancel(number)
        if asked is None or asked.ended:
            assert output is None, "ended twice"
        else:
            assert output == SequenceOutput(number, (), "abort")
            asked.ended = "abort"
            self.seen["cancelled" if asked.admitted is not None else "cancelled while waiting"] += 1
        self._check_slots()

    def step(self, random: Random) -> None:
        """One that succeeds."""
        batch = self._schedule()
        self._run(batch)
        self._take(batch, *Steps.sample(batch, random), spoiled=frozenset())
        self.scheduler.observe(batch, random.choice([1e-4, 1e-3, 1e-2, 1.0]))

    def step_with_no_numbers(self, random: Random) -> None:
        """One whose logits are no numbers for some."""
        batch = self._schedule()
        self._run(batch)
        spoiled = {chunk.sequence.id for chunk in batch.sampling if random.random() < 0.5}
        sampled, further = Steps.sample(batch, random)
        for chunk in batch.chunks:
            chunk.sequence.spoiled = chunk.sequence.id in spoiled
        self._take(batch, sampled, further, spoiled=frozenset(spoiled))
        for chunk in batch.chunks:
            if chunk.sequence.id in spoiled:
                self.seen["no numbers"] += 1
                if not self.asked[chunk.sequence.id].ended:
                    self.cancel(chunk.sequence.id)
                self._slots[chunk.slot].clear()
        self._check_slots()

    def step_out_of_memory(self, random: Random) -> None:
        """One that fails on its way, and nobody knows where: some copies are made, some tokens written."""
        batch = self._schedule()
        for copy in batch.copies:
            if random.random() < 0.5:
                self._slots[copy.target][: copy.length] = self._slots[copy.source][: copy.length]
            else:
                self._spoil(copy.target, 0, copy.length)
        for chunk in batch.chunks if self._packed else ():
            self._spoil(chunk.slot, chunk.start, chunk.end)
        failed = self.scheduler.last_to_ask(batch)
        assert failed, "nobody makes room"
        for sequence in failed:
            output = self.scheduler.fail(sequence, "no memory")
            assert output == SequenceOutput(sequence.id, (), "error", error="no memory")
            assert self.asked[sequence.id].ended is None, "ended twice"
            self.asked[sequence.id].ended = "error"
        self.seen["out of memory with copies" if batch.copies else "out of memory"] += 1
        self._check_slots()

    def finish(self, random: Random) -> None:
        """Do all that is left."""
        most = self.steps + self._patience() * (1 + len(self.scheduler.waiting))
        while self.scheduler.has_work:
            self.step(random)
            assert self.steps <= most, "it does not end"
        self.scheduler.check_idle()
        for number, asked in self.asked.items():
            assert asked.ended is not None, f"{number} has no end"
            if asked.ended in ("stop", "length"):
                assert asked.told == asked.tokens[len(asked.prompt) :]
                if asked.params.prompt_logprobs and asked.params.logprobs is not None:
                    assert asked.scored == list(asked.prompt[1:])

    # -- what must hold -------------------------------------------------------------------------------

    def _running(self) -> list[Asked]:
        return [self.asked[number] for number in self.scheduler.running]

    def _schedule(self) -> Batch:
        waiting = [sequence.id for sequence in self.scheduler.waiting]
        batch = self.scheduler.schedule()
        self._check_admission(waiting)
        assert batch.chunks, "work, and an empty batch"
        assert len({chunk.sequence.id for chunk in batch.chunks}) == len(batch.chunks), "twice in a step"
        assert len({chunk.sequence.adapter for chunk in batch.chunks}) == 1, "a step of several adapters"
        for chunk in batch.chunks:
            self._check_chunk(chunk)
        if self._packed:
            self._check_packed(batch)
        else:
            self._check_cohort(batch)
        return batch

    def _check_admission(self, waiting: list[int]) -> None:
        left = {sequence.id for sequence in self.scheduler.waiting}
        admitted = [number for number in waiting if number not in left]
        if admitted:
            assert admitted[0] == waiting[0], "overtaken by those that came later"
        if self._packed:
            assert admitted == waiting[: len(admitted)], "not in order of arrival"
            latest = list(self.scheduler.running)[len(self.scheduler.running) - len(admitted) :]
            assert latest == admitted, "running in another order"
            assert not left or not self.scheduler.free_slots, "a free slot, and some that wait"
        for number in admitted:
            self.asked[number].admitted = self.asked[number].last_step = self.steps

    def _check_chunk(self, chunk: Chunk) -> None:
        sequence, asked = chunk.sequence, self.asked[chunk.sequence.id]
        assert asked.ended is None, "a step for one that has ended"
        assert self.scheduler.running.get(sequence.id) is sequence, "it does not run"
        assert sequence.slot == chunk.slot, "another's slot"
        assert chunk.start < Steps.known_end(chunk) <= len(asked.tokens), "no tokens, or more than there are"
        assert chunk.token_ids == [*asked.tokens[chunk.start : Steps.known_end(chunk)], *chunk.drafts]
        if chunk.drafts:
            self._check_drafts(chunk, asked)
        assert chunk.scored == (asked.params.prompt_logprobs and chunk.start < len(asked.prompt))
        if asked.next_start is not None:
            assert chunk.start == asked.next_start, "not where the cache ends"
        elif not self._packed or asked.params.prompt_logprobs or not self._prefix_cache:
            assert chunk.start == 0, "tokens that nobody computed"
        else:
            assert chunk.start < len(asked.prompt), "the last token's logits are wanted"
        if asked.first_start is None:
            asked.first_start = chunk.start
            self.seen["shared"] += chunk.start > 0

    def _check_drafts(self, chunk: Chunk, asked: Asked) -> None:
        self.seen["drafts"] += 1
        assert asked.params.greedy, "a guess at what is drawn by chance"
        assert Steps.known_end(chunk) == chunk.start + 1 == len(asked.tokens), "guesses behind unread tokens"
        assert len(asked.tokens) + len(chunk.drafts) < self.scheduler.context_length, "no room for them"
        output = len(asked.tokens) - len(asked.prompt)
        assert output + len(chunk.drafts) < asked.params.max_tokens, "more than are wanted"

    def _check_packed(self, batch: Batch) -> None:
        assert batch.num_tokens <= self.scheduler.token_budget, "beyond the budget"
        assert [chunk.slot for chunk in batch.decoding] == sorted({chunk.slot for chunk in batch.decoding})
        assert sum(chunk.length for chunk in batch.prefill if chunk.scored) <= SCORED
        chunks = {chunk.sequence.id: chunk for chunk in batch.prefill}
        mine = [asked for asked in self._running() if asked.adapter == batch.adapter]
        decoding = {asked.sequence.id for asked in mine if Steps.decodes(asked)}
        rest = {chunk.sequence.id for chunk in batch.decoding + batch.checking}
        assert decoding <= rest, "a stream that stalls"
        assert all(chunk.drafts for chunk in batch.checking)
        assert not batch.checking or (self._speculates and not batch.prefill)
        for asked in mine:
            self._check_leader(asked)
        reading = [each for each in mine if each.sequence.id not in rest and not _waits(each.sequence)]
        plain = [asked for asked in reading if not asked.params.prompt_logprobs]
        read = [asked.sequence.id for asked in plain if asked.sequence.id in chunks]
        assert read == [asked.sequence.id for asked in plain[: len(read)]], "prompts out of order"
        whole = [chunks[number].end == len(self.asked[number].tokens) for number in read]
        assert all(whole[:-1]), "a prompt is begun before the one ahead is read"
        if sum(chunk.length for chunk in batch.prefill) < Steps.room(batch, self.scheduler):
            assert len(read) == len(plain), "room in a step, and a prompt that waits"
            assert all(whole), "room in a step, and a prompt that is not read on"
        if reading and len(rest) < self.scheduler.token_budget:
            assert reading[0].sequence.id in chunks, "the first prompt starves"
        self._check_turns(batch)

    def _check_leader(self, asked: Asked) -> None:
        leader = asked.sequence.leader
        if leader is None or not _waits(asked.sequence):
            return
        self.seen["waits for its leader"] += 1
        ahead = self.asked[leader.id]
        assert ahead.ended is None, "waits for one that has ended"
        assert ahead.adapter == asked.adapter
        order = list(self.scheduler.running)
        assert order.index(leader.id) < order.index(asked.sequence.id), "waits for one behind it"
        shared = asked.sequence.shared
        assert ahead.tokens[:shared] == asked.tokens[:shared], "waits for what is not its own"
        assert shared < len(asked.prompt)

    def _check_turns(self, batch: Batch) -> None:
        waiting = {asked.adapter for asked in self._running()} - {batch.adapter}
        self._waits = {adapter: self._waits.get(adapter, 0) + 1 for adapter in waiting}
        assert max(self._waits.values(), default=0) < len(ADAPTERS), "an adapter starves"
        self.seen["several adapters"] += bool(waiting)

    def _check_cohort(self, batch: Batch) -> None:
        cohort = batch.cohort
        assert cohort is not None
        assert not (batch.decoding and batch.prefill), "a cohort steps as one"
        assert [chunk.sequence for chunk in batch.chunks] == list(cohort.live), "some are left behind"
        assert not batch.copies
        lengths = [len(sequence.tokens[: sequence.prompt_length]) for sequence in cohort.sequences]
        if len(lengths) > 1:
            assert max(lengths) * len(lengths) <= self.scheduler.token_budget
            self.seen["cohorts of several"] += 1
        if self._cohort is not cohort and not self._interleaves:
            assert self._cohort is None or not self._cohort.live, "another cohort cuts in"
        self._cohort = cohort
        for asked in self._running():
            assert self.steps - asked.last_step <= self.scheduler.slots, "starved"

    def _run(self, batch: Batch) -> None:
        """What the step does to the slots, each of whose tokens has the adapter that computed it."""
        if not self._packed:
            return
        for copy in batch.copies:
            held = self._slots[copy.source][: copy.length]
            assert len(held) == copy.length, "a copy of what was never computed"
            assert all(token != GARBAGE for _, token in held), "a copy of what a failed step has left"
            self._slots[copy.target][: copy.length] = held
            self.seen["copies"] += 1
        for chunk in batch.chunks:
            asked, held = self.asked[chunk.sequence.id], self._slots[chunk.slot]
            wanted = [(asked.adapter, token) for token in asked.tokens[: chunk.start]]
            assert held[: chunk.start] == wanted, "computed behind another sequence's tokens"
            written = Steps.written(chunk, asked.tokens)
            held[chunk.start :] = [(asked.adapter, token) for token in written] + held[chunk.end :]

    def _spoil(self, slot: int, start: int, end: int) -> None:
        held = self._slots[slot]
        held.extend([(None, GARBAGE)] * (end - len(held)))
        held[start:end] = [(None, GARBAGE)] * (end - start)

    def _take(
        self, batch: Batch, sampled: list[int], further: Mapping[int, list[int]], *, spoiled: frozenset[int]
    ) -> None:
        """Let the scheduler record the step, and look at what it tells."""
        self.steps += 1
        new = {
            chunk.sequence.id: self._up_to_the_end(chunk, [token, *further.get(chunk.sequence.id, ())])
            for chunk, token in zip(batch.sampling, sampled, strict=True)
        }
        scores = {chunk.sequence.id: self._scores(chunk, new) for chunk in batch.chunks if chunk.scored}
        due = [chunk.sequence.id for chunk in batch.chunks if self._is_due(chunk, scores)]
        for chunk in batch.chunks:
            asked, got = self.asked[chunk.sequence.id], new.get(chunk.sequence.id, [])
            asked.tokens += got
            asked.next_start, asked.last_step = Steps.next_start(chunk, got), self.steps
        outputs = self.scheduler.update(batch, sampled, scores, further)
        assert [output.sequence_id for output in outputs] == due
        for output in outputs:
            got = new.get(output.sequence_id, [])
            self._check_output(output, got, scores.get(output.sequence_id))
            if output.sequence_id in spoiled:
                self.asked[output.sequence_id].ended = self.asked[output.sequence_id].ended and "error"
        for asked in self._running():
            assert asked.admitted is not None
            assert self.steps - asked.admitted <= self._patience(), "it takes for ever"
        self._check_slots()

    def _up_to_the_end(self, chunk: Chunk, drawn: list[int]) -> list[int]:
        """Those of the tokens that the sequence gets before it ends."""
        asked = self.asked[chunk.sequence.id]
        before, after = asked.next_start, list(asked.tokens)
        for count, token in enumerate(drawn, 1):
            asked.tokens.append(token)
            asked.next_start = Steps.next_start(chunk, drawn[:count])
            ended = self._due_end(asked)
            if ended:
                self.seen["an end among drafts"] += count < len(drawn)
                break
        asked.next_start, asked.tokens = before, after
        self.seen["drafts come true"] += count > 1
        return drawn[:count]

    def _scores(self, chunk: Chunk, new: Mapping[int, list[int]]) -> Scores:
        prompt = self.asked[chunk.sequence.id].prompt[chunk.start + 1 : chunk.end + 1]
        own = new.get(chunk.sequence.id, [])
        told = [TokenLogprob(token, -1.0, ()) for token in (*prompt, *own)]
        return Scores(tuple(told[: len(prompt)]), tuple(told[len(prompt) :]))

    def _is_due(self, chunk: Chunk, scores: Mapping[int, Scores]) -> bool:
        """Whether whoever asked has something to hear of."""
        scored = chunk.sequence.id in scores and scores[chunk.sequence.id].prompt
        return chunk.samples or bool(scored) or chunk.end == len(self.asked[chunk.sequence.id].prompt)

    def _check_output(self, output: SequenceOutput, new: list[int], scores: Scores | None) -> None:
        asked = self.asked[output.sequence_id]
        assert asked.ended is None, "a token after the end"
        assert list(output.token_ids) == new, "other tokens than were drawn, or some behind the end"
        assert output.cached_tokens == (0 if asked.has_output else asked.first_start)
        assert output.prompt_logprobs == (() if scores is None else scores.prompt)
        assert output.logprobs == (() if scores is None else scores.new)
        assert output.error is None
        assert output.finish_reason == self._due_end(asked), output
        asked.has_output = True
        asked.told += output.token_ids
        asked.scored += [each.token_id for each in output.prompt_logprobs]
        asked.ended = output.finish_reason
        if asked.ended:
            self.seen[asked.ended] += 1

    def _due_end(self, asked: Asked) -> str | None:
        output = asked.tokens[len(asked.prompt) :]
        ends = {STOP} & set(asked.params.stop_token_ids) | (set() if asked.params.ignore_eos else {EOS})
        if output and output[-1] in ends:
            return "stop"
        if asked.next_start is not None and asked.next_start < len(asked.prompt):
            return None
        separate = self.scheduler.completion_length
        full = (
            len(asked.tokens) >= self.scheduler.context_length
            if separate is None
            else len(output) >= separate
        )
        return "length" if full or len(output) >= asked.params.max_tokens else None

    def _check_slots(self) -> None:
        scheduler = self.scheduler
        held = [sequence.slot for sequence in scheduler.running.values()]
        assert len(set(held)) == len(held), "a slot that two hold"
        assert set(held) <= set(range(scheduler.slots))
        assert scheduler.free_slots + len(held) == scheduler.slots, "a slot is lost"
        live = {number for number, asked in self.asked.items() if asked.ended is None}
        assert live == set(scheduler.running) | {sequence.id for sequence in scheduler.waiting}
        assert scheduler.oldest == min(live, default=0)
        assert scheduler.prefix_hits <= scheduler.prefix_queries
        if self._packed:
            assert not scheduler.cache.slots.free & set(held)
            cached = sum(asked.sequence.num_cached for asked in self.asked.values())
            assert scheduler.prefix_hits == cached, "shares that nobody has"
            assert self._prefix_cache or not cached

    def _patience(self) -> int:
        """Steps within which one that was admitted must end: each reads on in the first prompt at least, of
        its adapter.
        """
        scheduler = self.scheduler
        longest = scheduler.context_length + (scheduler.completion_length or 0)
        return len(ADAPTERS) * (scheduler.slots + 1) * longest


def _waits(sequence: EngineSequence) -> bool:
    """Whether it waits for another to compute what they share."""
    leader = sequence.leader
    return leader is not None and leader.slot is not None and leader.num_computed < sequence.shared


# -- loads by chance --------------------------------------------------------------------------------------


def new_checked(random: Random) -> Checked:
    """A scheduler of any kind."""
    slots = random.randint(1, 6)
    limits = {
        "slots": slots,
        "token_budget": random.choice([slots, random.randint(slots, 12), random.randint(slots, 50)]),
        "context_length": CONTEXT,
        "eos_token_ids": [EOS],
    }
    if random.random() < 0.75:
        shares, speculates = random.random() < 0.9, random.random() < 0.6
        scheduler = PackedScheduler(**limits, prefix_cache=shares, speculates=speculates)
        return Checked(scheduler, prefix_cache=shares, speculates=speculates)
    abilities = CohortAbilities(*(random.random() < 0.7 for _ in range(4)))
    separate = random.choice([None, None, 10])
    cohorts = CohortScheduler(**limits, abilities=abilities, completion_length=separate)
    return Checked(cohorts, interleaves=abilities.interleaves)


class Prompts:
    """Many of which begin alike."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._known: list[tuple[int, ...]] = [self._any(CONTEXT) for _ in range(3)]

    def draw(self) -> tuple[int, ...]:
        known = self._random.choice(self._known)
        cut = self._random.choice([0, self._random.randint(0, len(known)), len(known)])
        room = CONTEXT - cut
        prompt = known[:cut] + self._any(self._random.choice([1, 3, room, room + 1]))
        self._known[self._random.randrange(len(self._known))] = prompt or (1,)
        return prompt

    def _any(self, most: int) -> tuple[int, ...]:
        return tuple(self._random.choice(PROMPT_TOKENS) for _ in range(self._random.randint(0, max(0, most))))


def draw_params(random: Random) -> SamplingParams:
    scored = random.random() < 0.15
    return SamplingParams(
        max_tokens=random.choice([0, 1, 2, 5, 12, 60] if scored else [1, 2, 5, 12, 60]),
        temperature=random.choice([0, 1]),
        ignore_eos=random.random() < 0.3,
        stop_token_ids=(STOP,) if random.random() < 0.5 else (),
        logprobs=1 if scored else None,
        prompt_logprobs=scored,
    )


def act(checked: Checked, prompts: Prompts, random: Random, busy: float) -> None:
    """Do one thing to a scheduler: mostly a step."""
    what = random.random()
    if what < busy:
        prompt, params, adapter = prompts.draw(), draw_params(random), random.choice(ADAPTERS)
        # Several choices of one prompt.
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            checked.add(prompt, params, adapter)
    elif what < busy + 0.05 and checked.asked:
        checked.cancel(max(0, len(checked.asked) - random.randint(-1, 12)))
    elif checked.scheduler.has_work:
        fate = random.random()
        if fate < 0.03:
            checked.step_out_of_memory(random)
        elif fate < 0.05:
            checked.step_with_no_numbers(random)
        else:
            checked.step(random)


def drive(steps: int, seed: int, episode: int = 400) -> Counter[str]:
    """Do so many steps, in episodes with a new scheduler each; what happened in them."""
    seen: Counter[str] = Counter()
    number = 0
    while seen["steps"] < steps:
        random = Random(f"{seed}/{number}")
        checked, prompts, busy = new_checked(random), Prompts(random), random.choice([0.05, 0.15, 0.3])
        try:
            while checked.steps < episode and len(checked.asked) < episode:
                act(checked, prompts, random, busy)
            checked.finish(random)
        except Exception:
            print(f"episode {number} of seed {seed}, after {checked.steps} steps of {checked.scheduler}")
            raise
        seen += checked.seen + Counter(steps=checked.steps, sequences=len(checked.asked), episodes=1)
        number += 1
    return seen


def main() -> None:
    started = time.monotonic()
    with small_limits():
        seen = drive(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(f"{time.monotonic() - started:.0f} s: {dict(seen)}")


if __name__ == "__main__":
    main()

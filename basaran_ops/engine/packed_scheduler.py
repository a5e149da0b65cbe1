"""Steps of packed tokens: every sequence that decodes, and as much of the prompts as the budget leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .drafts import MOST_ROWS, may_speculate, room_for_drafts
from .pace import Pace
from .prefix_cache import PrefixCache
from .scheduler import SCORED_TOKENS, Scheduler, next_chunk
from .sequence import Batch, Chunk, Sequence


class PackedScheduler(Scheduler):
    """Within a token budget per step. Every running sequence that decodes takes part in every step. What is
    left of the budget goes to prompts, in order of arrival, in chunks. While streams run, a step reads as
    much as makes it `stretch` times longer for one prompt: it slows streams down and never stalls them.

    Where few streams run, what greedy ones say next is guessed and checked in the same step.

    A step is of one adapter; those that running sequences have take turns, a step each.
    """

    def __init__(
        self, *, prefix_cache: bool = True, stretch: float = 2.0, speculates: bool = False, **limits: Any
    ) -> None:
        super().__init__(**limits)
        self._speculates = speculates
        self._pace = Pace(stretch)
        self.cache = PrefixCache(self.slots, enabled=prefix_cache)
        self._turns: list[str | None] = []
        """Adapters, the one whose last step is the longest ago first."""

    @property
    def prefix_queries(self) -> int:  # type: ignore[override]
        return self.cache.queries

    @property
    def prefix_hits(self) -> int:  # type: ignore[override]
        return self.cache.hits

    @property
    def free_slots(self) -> int:
        return len(self.cache.slots.free)

    def schedule(self) -> Batch:
        self._admit()
        adapter = self._next_adapter()
        sequences = [sequence for sequence in self.running.values() if sequence.adapter == adapter]
        decoding = [next_chunk(sequence, 1) for sequence in sequences if sequence.num_pending == 1]
        prefill = []
        reading = [sequence for sequence in sequences if sequence.num_pending > 1]
        # Each of many that wait may slow the streams down: slots without a stream are worth more than a few
        # streams at their best.
        most = self.token_budget - len(decoding)
        budget = self._pace.prompt_tokens(len(decoding), most, prompts=len(reading))
        scores = SCORED_TOKENS
        for sequence in reading:
            room = min(budget, scores) if sequence.scores_prompt else budget
            if room > 0 and self.cache.catch_up(sequence):
                chunk = next_chunk(sequence, min(sequence.num_pending, room))
                budget -= chunk.length
                scores -= chunk.length if chunk.scored else 0
                prefill.append(chunk)
        checking = [] if prefill else self._drafts(decoding)
        decoding = [chunk for chunk in decoding if all(c.sequence is not chunk.sequence for c in checking)]
        decoding.sort(key=lambda chunk: chunk.slot)
        copies = self.cache.take_copies()
        return Batch(tuple(decoding), tuple(prefill), copies, checking=tuple(checking))

    def _drafts(self, decoding: list[Chunk]) -> list[Chunk]:
        """Chunks with drafts in the place of some that decode, as long as a step's rows are few."""
        room = min(MOST_ROWS, self.token_budget) - len(decoding)
        if not self._speculates or room <= 0:
            return []
        found = []
        guessed = [chunk for chunk in decoding if may_speculate(chunk.sequence)]
        for left, chunk in zip(range(len(guessed), 0, -1), guessed, strict=True):
            sequence = chunk.sequence
            most = min(-(-room // left), room_for_drafts(sequence, self.context_length))
            if most > 0 and (drafts := sequence.lookup.draft(sequence.tokens, most)):
                room -= len(drafts)
                found.append(replace(chunk, length=1 + len(drafts), drafts=drafts))
        return found

    def observe(self, batch: Batch, seconds: float) -> None:
        if not batch.copies:
            rows = sum(chunk.length for chunk in batch.decoding + batch.checking)
            self._pace.observe(rows, sum(chunk.length for chunk in batch.prefill), seconds)

    def _next_adapter(self) -> str | None:
        in_use = dict.fromkeys(sequence.adapter for sequence in self.running.values())
        self._turns += [adapter for adapter in in_use if adapter not in self._turns]
        # One that waits is overtaken by each other one at most once.
        adapter = next(adapter for adapter in self._turns if adapter in in_use)
        self._turns.remove(adapter)
        self._turns.append(adapter)
        return adapter

    def _admit(self) -> None:
        while self.waiting and self.cache.slots.free:
            sequence = self.waiting.popleft()
            self.cache.place(sequence, self.running.values())
            self.running[sequence.id] = sequence

    def _release(self, sequence: Sequence) -> None:
        self.cache.release(sequence)

"""Steps of one cohort at a time, for models that are run as `generate()` runs them."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Any

from .cohort import Cohort
from .scheduler import SCORED_TOKENS, Scheduler, next_chunk
from .sequence import Batch, Chunk, Sequence


@dataclass(frozen=True, slots=True)
class CohortAbilities:
    """What a model allows to be done with a batch without changing its tokens; see PaddedRunner."""

    batches: bool
    """Prompts of one length may share a batch."""
    pads: bool
    """Prompts of different lengths may, too."""
    chunks: bool
    """A prompt may be read in several steps."""
    interleaves: bool
    """Another cohort may be stepped between two steps of one."""


class CohortScheduler(Scheduler):
    """What waits when a step begins is formed into cohorts at once; cohorts take turns, a step each.

    A cohort's prompts together, padded, take no more tokens than the budget; a longer prompt is a cohort of
    its own, read in chunks where the model allows that. So is one whose tokens want scores. A cohort has one
    adapter.
    """

    def __init__(self, *, abilities: CohortAbilities, **limits: Any) -> None:
        super().__init__(**limits)
        self._abilities = abilities
        self._free = list(range(self.slots))
        self._cohorts: deque[Cohort] = deque()
        """Those with live sequences, the next to be stepped first."""

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def schedule(self) -> Batch:
        while self.waiting and self._free and (self._abilities.interleaves or not self._cohorts):
            self._cohorts.append(self._form())
        cohort = self._cohorts.popleft()
        self._cohorts.append(cohort)
        chunks = tuple(self._next_chunk(sequence) for sequence in cohort.live)
        if any(chunk.start < chunk.sequence.prompt_length for chunk in chunks):
            return Batch((), chunks, cohort=cohort)
        return Batch(chunks, (), cohort=cohort)

    def _form(self) -> Cohort:
        members = [self.waiting.popleft()]
        for sequence in list(self.waiting):
            if len(members) < len(self._free) and self._joins(sequence, members):
                self.waiting.remove(sequence)
                members.append(sequence)
        for sequence in members:
            sequence.slot = heapq.heappop(self._free)
            self.running[sequence.id] = sequence
        return Cohort(members)

    def _joins(self, sequence: Sequence, members: list[Sequence]) -> bool:
        lengths = [member.prompt_length for member in (*members, sequence)]
        alike = sequence.adapter == members[0].adapter and (self._abilities.pads or len(set(lengths)) == 1)
        scored = sequence.scores_prompt or members[0].scores_prompt
        fits = max(lengths) * len(lengths) <= self.token_budget and self._stays_within(sequence, members)
        return self._abilities.batches and alike and not scored and fits

    def _stays_within(self, sequence: Sequence, members: list[Sequence]) -> bool:
        """Whether no row grows beyond the context: it begins where the longest prompt ends."""
        if self.completion_length is not None:
            return True
        together = [*members, sequence]
        longest = max(member.prompt_length for member in together)
        return longest + max(member.params.max_tokens for member in together) <= self.context_length

    def _next_chunk(self, sequence: Sequence) -> Chunk:
        length = sequence.num_pending
        if self._abilities.chunks:
            length = min(length, SCORED_TOKENS if sequence.scores_prompt else self.token_budget)
        return next_chunk(sequence, length)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = None
        # At once: what the model keeps of a cohort may be gigabytes.
        self._cohorts = deque(cohort for cohort in self._cohorts if cohort.live)

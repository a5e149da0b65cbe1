"""The life of sequences from their arrival to their end. How steps are made of them is for subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from types import MappingProxyType

from ..outputs import FinishReason, SequenceOutput
from .logprobs import NO_SCORES, Scores
from .sequence import Batch, Chunk, Sequence

SCORED_TOKENS = 128
"""Prompt tokens of one step that may want logits: [128, vocab] in float32 is 25 MB for 49,152 tokens, 131 MB
for 256,000. A long prompt's scores never take more."""


class Scheduler(ABC):
    """First come, first served. Owns `waiting`, `running` and the slots; only `schedule`, `update`, `add` and
    `cancel` change them.
    """

    prefix_queries = 0
    prefix_hits = 0

    def __init__(
        self,
        *,
        slots: int,
        token_budget: int,
        context_length: int,
        eos_token_ids: Iterable[int],
        completion_length: int | None = None,
    ) -> None:
        """`context_length` counts prompt and completion, but the prompt alone where completions have a
        `completion_length` of their own.
        """
        if token_budget < slots:
            raise ValueError(
                f"token_budget {token_budget} is below slots {slots}: a full batch would not fit"
            )
        self.slots = slots
        self.token_budget = token_budget
        self.context_length = context_length
        self.completion_length = completion_length
        self.eos_token_ids = frozenset(eos_token_ids)
        self.drafted_tokens = 0
        """Tokens that were guessed and checked."""
        self.accepted_tokens = 0
        """Of those, tokens that came true."""
        self.latest = 0
        """Highest id of a sequence that was added."""
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} running={len(self.running)} waiting={len(self.waiting)}>"

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def oldest(self) -> int:
        """Lowest id of a sequence that runs or waits; 0 without any. Those that wait do so in their order."""
        waiting = self.waiting[0].id if self.waiting else self.latest + 1
        return min((*self.running, waiting)) if self.has_work else 0

    @property
    def cached_tokens(self) -> int:
        """Tokens of running sequences that are in the KV cache."""
        return sum(sequence.num_computed for sequence in self.running.values())

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises ValueError for an empty prompt or one that leaves no room for a token where one is wanted.
        """
        room = self.context_length
        if self.completion_length is None:
            room -= min(1, sequence.params.max_tokens)
        if not 0 < sequence.prompt_length <= room:
            raise ValueError(
                f"a prompt of {sequence.prompt_length} tokens does not fit a context of {self.context_length}"
            )
        self.waiting.append(sequence)
        self.latest = max(self.latest, sequence.id)

    def cancel(self, sequence_id: int) -> SequenceOutput | None:
        """End a sequence now and free its slot; None if it has ended already."""
        sequence = self.running.get(sequence_id)
        if sequence is not None:
            self._end(sequence)
            return SequenceOutput(sequence_id, (), "abort")
        for sequence in self.waiting:
            if sequence.id == sequence_id:
                self.waiting.remove(sequence)
                return SequenceOutput(sequence_id, (), "abort")
        return None

    @abstractmethod
    def schedule(self) -> Batch:
        """Admit what fits and pick the next step's chunks. Never empty while there is work."""

    def observe(self, batch: Batch, seconds: float) -> None:  # noqa: B027 - not everyone wants to know
        """Learn how long a finished step took."""

    def update(
        self,
        batch: Batch,
        sampled: Seq[int],
        scores: Mapping[int, Scores] = MappingProxyType({}),
        further: Mapping[int, Seq[int]] = MappingProxyType({}),
    ) -> list[SequenceOutput]:
        """Record a finished step: `sampled` holds one token for each of `batch.sampling`, in order; `scores`
        the log-probabilities by sequence id, where there are any; `further` what follows the token, by
        sequence id, where drafts came true.
        """
        tokens = iter(sampled)
        outputs = []
        for chunk in batch.chunks:
            sequence, score = chunk.sequence, scores.get(chunk.sequence.id, NO_SCORES)
            new: tuple[int, ...] = ()
            reason: FinishReason | None = None
            if chunk.samples:
                drawn = (next(tokens), *further.get(sequence.id, ()))
                new, reason = self._append(sequence, chunk.end - len(chunk.drafts), drawn)
                self._told(chunk, len(new) - 1)
            else:
                sequence.num_computed = chunk.end
                if not (score.prompt or chunk.end == sequence.prompt_length):
                    continue
                reason = self._finish_reason(sequence, ())
            if reason is not None:
                self._end(sequence)
            outputs.append(self._output(sequence, new, reason, score))
        return outputs

    def _append(
        self, sequence: Sequence, computed: int, drawn: tuple[int, ...]
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """Give a sequence tokens, up to one that ends it; all but the last are computed too."""
        for count, token in enumerate(drawn):
            sequence.append(token)
            sequence.num_computed = computed + count
            if reason := self._finish_reason(sequence, (token,)):
                return drawn[: count + 1], reason
        return drawn, None

    def _told(self, chunk: Chunk, accepted: int) -> None:
        if chunk.drafts:
            self.drafted_tokens += len(chunk.drafts)
            self.accepted_tokens += accepted
            chunk.sequence.lookup.told(len(chunk.drafts), accepted)

    def _output(
        self, sequence: Sequence, new: tuple[int, ...], reason: FinishReason | None, score: Scores
    ) -> SequenceOutput:
        first = not sequence.told
        sequence.told = True
        return SequenceOutput(
            sequence.id,
            new,
            reason,
            score.new,
            score.prompt,
            cached_tokens=sequence.num_cached if first else 0,
            scheduled_at=sequence.scheduled_at if first else None,
        )

    def fail(self, sequence: Sequence, reason: str) -> SequenceOutput:
        """End a running sequence with an error."""
        self._end(sequence)
        return SequenceOutput(sequence.id, (), "error", error=reason)

    def last_to_ask(self, batch: Batch) -> list[Sequence]:
        """Of a step that failed for want of memory, those that are to end so that the others can go on."""
        if batch.cohort is not None:
            # Some of its layers may have kept what others have not.
            return [chunk.sequence for chunk in batch.chunks]
        if batch.copies:
            # It is not known which were made: whoever was to get one has nothing that is sure to be there.
            targets = {copy.target for copy in batch.copies}
            failed = [sequence for sequence in self.running.values() if sequence.slot in targets]
            for sequence in failed:
                sequence.num_computed = 0
            return failed
        reading = [chunk.sequence for chunk in batch.prefill]
        return reading[-1:] or [max((chunk.sequence for chunk in batch.chunks), key=lambda each: each.id)]

    def check_idle(self) -> None:
        """Raise RuntimeError if a slot is missing although nothing runs: a leak."""
        if not self.has_work and self.free_slots != self.slots:
            raise RuntimeError(f"{self.slots - self.free_slots} slots leaked")

    @property
    @abstractmethod
    def free_slots(self) -> int:
        """Slots that no sequence holds."""

    @abstractmethod
    def _release(self, sequence: Sequence) -> None:
        """Take back a sequence's slot."""

    def _end(self, sequence: Sequence) -> None:
        del self.running[sequence.id]
        self._release(sequence)

    def _finish_reason(self, sequence: Sequence, new: tuple[int, ...]) -> FinishReason | None:
        if any(ends(sequence, token, self.eos_token_ids) for token in new):
            return "stop"
        if sequence.num_computed < sequence.prompt_length:
            return None
        return (
            "length" if sequence.num_output >= sequence.params.max_tokens or self._is_full(sequence) else None
        )

    def _is_full(self, sequence: Sequence) -> bool:
        if self.completion_length is not None:
            return sequence.num_output >= self.completion_length
        return len(sequence.tokens) >= self.context_length


def next_chunk(sequence: Sequence, length: int) -> Chunk:
    """The next `length` tokens of a running sequence."""
    assert sequence.slot is not None
    return Chunk(sequence, sequence.slot, sequence.num_computed, length, sequence.scores_prompt)


def ends(sequence: Sequence, token: int, eos_token_ids: frozenset[int]) -> bool:
    """Whether this token ends the sequence."""
    return token in sequence.stop_ids or (token in eos_token_ids and not sequence.params.ignore_eos)

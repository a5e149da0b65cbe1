"""One choice being generated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ..sampling_params import SamplingParams
from .drafts import Lookup

if TYPE_CHECKING:
    from .cohort import Cohort


class Sequence:
    """Mutable state of one choice; written by the scheduler alone.

    A sequence waits, holds a slot from admission to its end, and ends once.
    """

    __slots__ = (
        "adapter",
        "counts",
        "id",
        "leader",
        "lookup",
        "num_cached",
        "num_computed",
        "params",
        "prompt_length",
        "random",
        "scheduled_at",
        "shared",
        "slot",
        "spoiled",
        "stop_ids",
        "tokens",
        "told",
    )

    def __init__(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        seed: int | None,
        adapter: str | None = None,
    ) -> None:
        self.id = sequence_id
        self.adapter = adapter
        """The adapter it is generated with; None for the model itself."""
        self.params = params
        self.prompt_length = len(prompt_ids)
        self.tokens = list(prompt_ids)
        """Prompt, then output."""
        self.num_computed = 0
        """Leading tokens whose keys and values are in the cache."""
        self.num_cached = 0
        """Leading tokens that it did not have to compute."""
        self.leader: Sequence | None = None
        """A running sequence that begins alike and is computing what this one waits for."""
        self.shared = 0
        """How many leading tokens are the leader's too."""
        self.scheduled_at: float | None = None
        """When its first step began, in seconds of time.monotonic()."""
        self.spoiled = False
        """Whether what it computed are no numbers."""
        self.told = False
        """Whether it has had an output."""
        self.stop_ids = frozenset(params.stop_token_ids)
        self.lookup = Lookup()
        """What it may say next."""
        self.slot: int | None = None
        # Random takes a negative seed for its absolute value, and seeds must differ.
        self.random = Random(None if seed is None else seed % 2**64)  # noqa: S311 - reproducible on purpose

        self.counts: Counter[int] = Counter()
        """How often each token was generated."""

    @property
    def num_pending(self) -> int:
        """Tokens that must pass through the model before the next one can be sampled; 1 when decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def shareable(self) -> list[int]:
        """The prompt but for its last token, whose logits are wanted and must be computed."""
        return self.tokens[: self.prompt_length - 1]

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens want log-probabilities and have not all got them."""
        return self.params.prompt_logprobs and self.num_computed < self.prompt_length

    def begin(self, now: float) -> None:
        """Its first step begins, if it has not had one."""
        if self.scheduled_at is None:
            self.scheduled_at = now

    def append(self, token: int) -> None:
        """Record a generated token."""
        self.tokens.append(token)
        self.counts[token] += 1

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.id} slot={self.slot} prompt={self.prompt_length} "
            f"output={self.num_output} computed={self.num_computed}>"
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sequence's share of one step: tokens[start : start + length], never empty; the last of them may be
    drafts, which it does not have yet.
    """

    sequence: Sequence
    slot: int
    start: int
    length: int
    scored: bool = False
    """Whether its prompt tokens get log-probabilities, so that every row of it needs logits."""
    drafts: tuple[int, ...] = ()
    """Guesses at the next tokens; each row but the last of them says whether the next one is right."""

    @property
    def end(self) -> int:
        """Tokens in the cache once the step is done, drafts that may be wrong included."""
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the step ends with a new token for this sequence."""
        known = self.end - len(self.drafts)
        return known == len(self.sequence.tokens) and self.sequence.params.max_tokens > 0

    @property
    def logit_rows(self) -> int:
        """How many of its last tokens need logits."""
        return self.length if self.scored or self.drafts else int(self.samples)

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.end], *self.drafts]


@dataclass(frozen=True, slots=True)
class Copy:
    """Leading tokens of one slot that another one is to have too."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. Its tokens are packed in this order: decoding chunks, those that check drafts, prefill
    chunks.
    """

    decoding: tuple[Chunk, ...]
    """One token each, sorted by slot."""
    prefill: tuple[Chunk, ...]
    copies: tuple[Copy, ...] = ()
    """To be made before anything is computed, in this order."""
    cohort: Cohort | None = None
    """The rows that the step is of, where cohorts are stepped."""
    checking: tuple[Chunk, ...] = ()
    """Sequences that decode too, each a token and drafts."""

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decoding + self.checking + self.prefill

    @property
    def adapter(self) -> str | None:
        """The one adapter that its sequences are generated with."""
        return self.chunks[0].sequence.adapter

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    @property
    def sampling(self) -> tuple[Chunk, ...]:
        """The chunks that get a token from this step, in order."""
        return tuple(chunk for chunk in self.chunks if chunk.samples)

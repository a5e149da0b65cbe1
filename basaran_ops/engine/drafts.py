"""Guesses at what a sequence says next, from what it has said: prompt lookup (Saxena 2023).

Checking a few tokens takes a step hardly longer than computing one, while a step's time is that of reading
the weights. Greedy sequences alone are guessed at: their tokens stay what they were, several a step.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sequence import Sequence

MOST_ROWS = 12
"""Rows of a step, drafts included, up to which they are worth it: as many as weights are read for once."""

LENGTHS = (3, 2)
"""Tokens that must be alike before a guess, the better evidence first."""

MOST_FAILURES = 5
"""After n failures in a row a sequence is left alone for 2^n - 1 steps, n up to this."""


class Lookup:
    """What followed each few tokens of one sequence when they last occurred, and how well that served."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        """Behind which token to go on, by the last few tokens."""
        self._known = 0
        self._trust = 4
        self._failures = 0
        self._pause = 0

    def draft(self, tokens: Seq[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow these; none while guesses have failed of late."""
        self._learn(tokens)
        if self._pause:
            self._pause -= 1
            return ()
        for length in LENGTHS:
            place = self._places.get(tuple(tokens[-length:]))
            if place is not None:
                return _continued(tokens, place, min(most, self._trust))
        return ()

    def told(self, drafted: int, accepted: int) -> None:
        """So many of the last draft's tokens came true."""
        if accepted:
            self._failures = 0
            self._trust = 2 * self._trust if accepted == drafted else accepted + 1
            self._trust = min(self._trust, MOST_ROWS)
            return
        self._failures = min(self._failures + 1, MOST_FAILURES)
        self._pause = 2**self._failures - 1
        self._trust = 2

    def _learn(self, tokens: Seq[int]) -> None:
        """Of the last tokens it is not known yet what follows them."""
        for end in range(max(self._known, min(LENGTHS)), len(tokens)):
            for length in LENGTHS:
                if end >= length:
                    self._places[tuple(tokens[end - length : end])] = end
        self._known = max(self._known, len(tokens))


def _continued(tokens: Seq[int], place: int, count: int) -> tuple[int, ...]:
    """`count` tokens from a place on; what repeats itself up to the end is taken to go on so."""
    period = len(tokens) - place
    return tuple(tokens[place + number % period] for number in range(count))


def may_speculate(sequence: Sequence) -> bool:
    """Whether a sequence's next token depends on nothing but the model's logits for it, and nobody asks for
    these.
    """
    params = sequence.params
    return params.greedy and not params.adjusts_logits and params.logprobs is None and not params.ranked


def room_for_drafts(sequence: Sequence, context_length: int) -> int:
    """Tokens that it may get beyond its next one."""
    left = sequence.params.max_tokens - sequence.num_output
    return max(0, min(left, context_length - len(sequence.tokens)) - 1)

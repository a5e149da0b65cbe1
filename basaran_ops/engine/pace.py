"""How many prompt tokens a step may read while streams run, from how long steps take here."""

from __future__ import annotations

WEIGHT = 0.2
"""Of the newest step in what is remembered."""

FIRST_GUESS = 64
"""Prompt tokens of a step before anything was measured."""

LEAST = 8
"""Prompt tokens that a step may always read: a prompt must come to its end."""


class Pace:
    """Keeps a step that reads a prompt within `stretch` times one that only decodes.

    Both are learnt from finished steps: seconds of a step that decodes, by how many rows (in powers of two),
    and what a prompt token adds to it.
    """

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._decoding: dict[int, float] = {}
        self._prompt_token: float | None = None
        self._beside = False
        """Whether a prompt token's cost was seen beside rows that decode."""

    def observe(self, rows: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many decode rows and prompt tokens took so long."""
        if rows and not prompt_tokens:
            size = rows.bit_length()
            self._decoding[size] = _mixed(self._decoding.get(size), seconds)
            return
        decoding = self._step(rows) if rows else 0.0
        # A step that only reads has larger products, and says too little once others have been seen.
        if decoding is None or not prompt_tokens or (self._beside and not rows):
            return
        self._beside = rows > 0
        each = max(0.0, seconds - decoding) / prompt_tokens
        self._prompt_token = _mixed(self._prompt_token, each)

    def prompt_tokens(self, rows: int, most: int, prompts: int = 1) -> int:
        """How many tokens of so many prompts a step beside so many decode rows may read: `most` where none
        decodes, and at least LEAST.
        """
        if rows == 0:
            return most
        decoding = self._step(rows)
        if decoding is None or self._prompt_token is None:
            return min(most, FIRST_GUESS * prompts)
        extra = (self._stretch - 1) * decoding * prompts
        if extra >= most * self._prompt_token:
            return most
        return min(most, max(LEAST, int(extra / self._prompt_token)))

    def _step(self, rows: int) -> float | None:
        """Seconds of a step that decodes so many rows, or the nearest number of which any was seen."""
        size = rows.bit_length()
        if not self._decoding:
            return None
        return self._decoding[min(self._decoding, key=lambda known: (abs(known - size), known))]


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new

"""Sequences that were admitted together and are stepped together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .sequence import Sequence


class Cohort:
    """The rows of one batch, from their admission to the last one's end.

    `sequences` is set by the scheduler when it is formed; `state` is the runner's, which keeps there what the
    model remembers of these rows.
    """

    __slots__ = ("sequences", "state")

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = tuple(sequences)
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<Cohort live={len(self.live)}/{len(self.sequences)}>"

    @property
    def live(self) -> tuple[Sequence, ...]:
        """Those that have not ended."""
        return tuple(sequence for sequence in self.sequences if sequence.slot is not None)

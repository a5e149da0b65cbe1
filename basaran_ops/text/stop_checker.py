"""Stop strings, found across token boundaries."""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Passes text on until a stop string completes; the text is cut before it.

    What might be the beginning of a stop string is held back. The match that completes first wins, and of
    those that complete together the longest. The outcome does not depend on how the text was split.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """Text that can be shown now. Nothing more comes after a match."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stop]
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if ends:
            _, start, self.matched = min(ends)
            shown, self._held = self._held[:start], ""
            return shown
        keep = self._beginning()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """The text still held back, at the end of the sequence."""
        shown, self._held = self._held, ""
        return shown

    def _beginning(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

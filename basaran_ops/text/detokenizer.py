"""Text of a sequence, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix

REPLACEMENT = "\ufffd"

CONTEXT = 6
"""Tokens before the new one that are decoded along with it, at least: a token's text depends on its
neighbours."""

MAX_UNCERTAIN = 3
"""Replacement characters at the end that may still become something else: a UTF-8 character has up to 4
bytes, and some decoders show one replacement for each byte of an unfinished one."""

MAX_WINDOW = 32
"""Tokens decoded at a time at most. Where so many do not end in a whole character, none is coming."""


class Detokenizer:
    """Turns tokens into text as they come; the texts joined are the text of the whole.

    A window of the last tokens is decoded with each new one, and what that adds to the text shown so far is
    the new text: byte-level and sentencepiece decoders both give it exactly, spaces and characters of
    several tokens included.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt_ids[-MAX_WINDOW:])
        self._shown = ""
        """The window's text as far as it is out."""
        self.holding = False
        """Whether the end of the text is held back: a character may be unfinished."""
        self._slide(0)

    def push(self, token_id: int) -> str:
        """The text that is certain with this token; "" while it ends inside a character."""
        self._window.append(token_id)
        text = self._decode(self._window)
        uncertain = min(MAX_UNCERTAIN, len(text) - len(text.rstrip(REPLACEMENT)))
        self.holding = uncertain > 0
        if self.holding and len(self._window) < MAX_WINDOW:
            # Nothing at all, not only the end: byte-fallback decoders show a whole run of bytes as
            # replacements until its last character is complete.
            return ""
        new = self._beyond_shown(text[: len(text) - uncertain])
        self._slide(uncertain)
        return new

    def flush(self) -> str:
        """The text still held back, at the end: an unfinished character becomes U+FFFD."""
        text = self._decode(self._window)
        new = self._beyond_shown(text)
        self._shown, self.holding = text, False
        return new

    def _beyond_shown(self, text: str) -> str:
        # Not text[len(shown):]: a prompt may end inside a character, which the output then completes.
        return text[len(commonprefix((self._shown, text))) :]  # noqa: RUF071 - characters are meant

    def _slide(self, uncertain: int) -> None:
        """Keep the shortest end of the window that does not begin inside a character."""
        longest = min(len(self._window), MAX_WINDOW // 2)
        for keep in range(min(CONTEXT, longest), longest + 1):
            window = self._window[-keep:] if keep else []
            # It may end inside a character, and all of it be replacements for that.
            for unfinished in range(min(MAX_UNCERTAIN, keep) + 1):
                text = self._decode(window[: keep - unfinished])
                if text and not text.startswith(REPLACEMENT):
                    self._window = window
                    self._shown = text if unfinished else text[: len(text) - uncertain]
                    return
        self._window = self._window[-CONTEXT:]
        text = self._decode(self._window)
        self._shown = text[: len(text) - uncertain]

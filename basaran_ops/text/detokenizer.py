"""Text of a sequence, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix

REPLACEMENT = "\ufffd"

CONTEXT = 6
"""Tokens before the new one that are decoded along with it: a token's text depends on its neighbours."""

MAX_UNCERTAIN = 3
"""Replacement characters at the end that the next token may still turn into something else: a UTF-8
character has up to 4 bytes, and some decoders show one replacement for each byte of an unfinished one."""

MAX_WINDOW = 32
"""Tokens decoded at a time while no character is ever finished."""


class Detokenizer:
    """Turns tokens into text as they come; the texts joined are the text of the whole.

    A window of the last tokens is decoded with each new one, and what that adds to the text shown so far is
    the new text: byte-level and sentencepiece decoders both give it exactly, spaces and characters of
    several tokens included.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt_ids[-CONTEXT:])
        self._shown = decode(self._window)
        """The window's text as far as it is out."""
        self._uncertain = 0

    def push(self, token_id: int) -> str:
        """The text that is certain with this token; "" while it ends inside a character."""
        self._window.append(token_id)
        text = self._decode(self._window)
        self._uncertain = _uncertain(text)
        certain = text[: len(text) - self._uncertain]
        new = self._beyond_shown(certain)
        if new:
            self._shown = certain
        if certain == text or len(self._window) >= MAX_WINDOW:
            self._slide(self._uncertain)
        return new

    @property
    def holding(self) -> bool:
        """Whether an unfinished character is held back."""
        return self._uncertain > 0

    def flush(self) -> str:
        """The text still held back, at the end: an unfinished character becomes U+FFFD."""
        text = self._decode(self._window)
        new = self._beyond_shown(text)
        self._shown, self._uncertain = text, 0
        return new

    def _beyond_shown(self, text: str) -> str:
        # Not text[len(shown):]: a prompt may end inside a character, which the output then completes.
        return text[len(commonprefix((self._shown, text))) :]  # noqa: RUF071 - characters are meant

    def _slide(self, uncertain: int) -> None:
        keep = CONTEXT if not uncertain else MAX_WINDOW // 2
        del self._window[:-keep]
        text = self._decode(self._window)
        self._shown = text[: len(text) - uncertain]


def _uncertain(text: str) -> int:
    """How many characters at the end may still change."""
    return min(MAX_UNCERTAIN, len(text) - len(text.rstrip(REPLACEMENT)))

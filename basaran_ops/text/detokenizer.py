"""Text of a sequence, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix

REPLACEMENT = "\ufffd"

CONTEXT = 6
"""Prompt tokens decoded along with the output: what a token looks like depends on its neighbours."""

MAX_HELD = 6
"""Tokens held back while they end inside a character. The longest UTF-8 character is 4 bytes; a token that
still ends in U+FFFD after this many is one that cannot be decoded."""


class Detokenizer:
    """Turns tokens into text as they come; the texts joined are the text of the whole.

    A window of the last tokens is decoded with and without the new ones, and the difference is
    the new text: byte-level and sentencepiece decoders both give it exactly, spaces and multi-token
    characters included.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt_ids[-CONTEXT:])
        self._told = len(self._window)
        """Leading tokens of the window whose text is out."""
        self._prefix = decode(self._window)

    def push(self, token_id: int) -> str:
        """The text that is certain with this token; "" while it ends inside a character."""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = len(self._window) - self._told
        if text.endswith(REPLACEMENT) and held < MAX_HELD:
            return ""
        return self._tell(text)

    def flush(self) -> str:
        """The text still held back, at the end: an unfinished character becomes U+FFFD."""
        if self._told == len(self._window):
            return ""
        return self._tell(self._decode(self._window))

    def _tell(self, text: str) -> str:
        # Not simply text[len(prefix):]: a prompt may end inside a character, which the output completes.
        new = text[len(commonprefix((self._prefix, text))) :]  # noqa: RUF071 - characters are meant
        del self._window[:-CONTEXT]
        self._told = len(self._window)
        self._prefix = self._decode(self._window)
        return new

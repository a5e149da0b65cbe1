"""The model's tokenizer, safe to call from many threads."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..errors import ModelLoadError
from .infilling import Infilling

_importing = threading.Lock()

REPLACEMENT = "\ufffd"


def _character_of_byte() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    return characters | {byte: chr(256 + number) for number, byte in enumerate(others)}


BYTE_OF_CHARACTER = {character: byte for byte, character in _character_of_byte().items()}
"""How byte-level tokenizers write bytes as characters (Radford et al. 2019, GPT-2)."""


class Tokenizer:
    """Wraps transformers' tokenizer.

    The Rust backend is called directly: transformers' own methods set its padding and truncation before
    each call, which fails when two threads do it ("Already borrowed"). A Python one is called under a lock.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        """transformers' own object. Its methods change its state: not for sharing among threads."""
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._lock: AbstractContextManager[object] = threading.Lock()
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._lock = nullcontext()
        self.bos_token_id: int | None = tokenizer.bos_token_id
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        """All that decode() leaves out; transformers' own list has named ones only."""
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        """Characters of the longest token: no token stands for more of a text."""
        visible = [token for token in self.encode("a") if token not in self._special_ids]
        self._anchor = visible[-1:]
        # One entry a token of the vocabulary at most; the same text whoever writes it.
        self._token_texts: dict[int, str] = {}
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.infilling = Infilling.of(tokenizer.get_vocab())
        """None for a model that cannot fill in the middle."""

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool = False) -> Tokenizer:
        """Read the tokenizer in a directory. Raises ModelLoadError if there is none that can be read."""
        import_library()
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code, local_files_only=True
            )
            return cls(tokenizer)
        except Exception as error:
            # The Rust library raises plain Exception for a file that it cannot parse.
            raise ModelLoadError(f"{path}: its tokenizer cannot be read: {error}") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds to a prompt or without."""
        if self._backend is not None:
            # As a batch of one: encode() would hold Python's lock throughout, and with it the whole server,
            # for seconds where the text is long.
            (encoded,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return list(encoded.ids)
        with self._lock:
            return list(self.hf.encode(text, add_special_tokens=add_special_tokens))

    def encode_infilling(self, before: str | Sequence[int], after: str) -> list[int]:
        """Token ids that ask for the text between two others.

        Raises ValueError for a model that was not trained to fill in the middle.
        """
        if self.infilling is None:
            raise ValueError("the model cannot fill in the middle: its vocabulary has no tokens for it")
        start = self.encode("") if isinstance(before, str) else []
        if isinstance(before, str):
            before = self.encode(before, add_special_tokens=False)
        return self.infilling.prompt(start, before, self.encode(after, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; an incomplete character becomes U+FFFD."""
        if self._backend is not None:
            return str(self._backend.decode(list(token_ids), skip_special_tokens=True))
        with self._lock:
            text = self.hf.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            return str(text)

    def token_text(self, token_id: int) -> str:
        """What one token adds to a text before it; a special token's own name."""
        text = self._token_texts.get(token_id)
        if text is None:
            # Decoded alone, a sentencepiece token would lose its leading space.
            before = self.decode(self._anchor)
            text = self.decode([*self._anchor, token_id])[len(before) :] or self._name(token_id)
            self._token_texts[token_id] = text
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; those of several tokens may make up one character."""
        piece = self.hf.convert_ids_to_tokens(token_id)
        if isinstance(piece, str) and REPLACEMENT in self.token_text(token_id):
            if match := re.fullmatch("<0x([0-9A-F]{2})>", piece):
                return bytes.fromhex(match[1])
            if all(character in BYTE_OF_CHARACTER for character in piece):
                return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        return self.token_text(token_id).encode()

    def at_least_tokens(self, characters: int) -> int:
        """So many tokens a text of this length has at least, seen without encoding it; 0 where that is not
        known because the tokenizer may shorten a text first.
        """
        if self._backend is None or self._backend.normalizer is not None:
            return 0
        return characters // self._longest

    def describe(self) -> dict[str, object]:
        """The tokenizer's class, special tokens and chat template."""
        return {
            "tokenizer_class": type(self.hf).__name__,
            "vocab_size": len(self.hf),
            "bos_token": self.hf.bos_token,
            "eos_token": self.hf.eos_token,
            "pad_token": self.hf.pad_token,
            "unk_token": self.hf.unk_token,
            "chat_template": self.hf.chat_template,
        }

    def _name(self, token_id: int) -> str:
        name = self.hf.convert_ids_to_tokens(token_id)
        return name if isinstance(name, str) and token_id in self._special_ids else ""

    def prompt_start(self) -> int:
        """The token that an absent prompt starts from: BOS, else EOS.

        Raises ValueError if the tokenizer has neither.
        """
        for token in (self.bos_token_id, self.eos_token_id):
            if token is not None:
                return token
        raise ValueError("the tokenizer has neither a BOS nor an EOS token")


def import_library() -> None:
    """Import transformers, which takes two seconds: while the engine loads rather than when it is ready.

    One thread does, and others wait: modules that import each other would be seen half made.
    """
    with _importing:
        importlib.import_module("transformers.tokenization_utils_base")
        importlib.import_module("transformers.models.auto.tokenization_auto")

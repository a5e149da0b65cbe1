from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from basaran_ops.text.detokenizer import MAX_WINDOW, REPLACEMENT, Detokenizer
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import VOCAB, tiny_tokenizer


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer())


def streamed(ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer().decode, prompt or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(st.text())
def test_any_text_comes_through_whole(text: str) -> None:
    pieces = streamed(tokenizer().encode(text))
    assert "".join(pieces) == text


@given(st.text(min_size=1), st.integers(0, 50))
def test_where_the_prompt_ends_does_not_matter(text: str, cut: int) -> None:
    ids = tokenizer().encode(text)
    prompt, rest = ids[:cut], ids[cut:]
    shown = tokenizer().decode(prompt).rstrip(REPLACEMENT)
    if text.startswith(shown) and REPLACEMENT not in text:
        assert shown + "".join(streamed(rest, prompt)) == text


def test_no_piece_ends_inside_a_character() -> None:
    pieces = streamed(tokenizer().encode("a😀中é👨‍👩‍👧"))
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert pieces[0] == "a"


def test_an_unfinished_character_at_the_end_becomes_a_replacement() -> None:
    ids = tokenizer().encode("ok😀")[:-1]
    assert "".join(streamed(ids)) == "ok" + REPLACEMENT


def test_tokens_that_never_make_a_character_are_not_held_for_ever() -> None:
    broken = tokenizer().encode("😀")[:1] * 200
    detokenizer = Detokenizer(tokenizer().decode, [])
    shown = 0
    for number, token in enumerate(broken, start=1):
        shown += len(detokenizer.push(token))
        assert number - shown <= MAX_WINDOW
    assert shown + len(detokenizer.flush()) == len(broken)


PIECES = [f"<0x{byte:02X}>" for byte in range(256)] + [
    "\u2581",
    "\u2581the",
    "\u2581cat",
    "s",
    "\u2581好",
    "é",
]


@cache
def byte_fallback_decoder() -> decoders.Decoder:
    """As Llama 2, Mistral and Gemma have it: a character outside the vocabulary is one token a byte."""
    return decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def fallback_decode(ids: Sequence[int]) -> str:
    return str(byte_fallback_decoder().decode([PIECES[token] for token in ids]))


def fallback_encode(text: str) -> list[int]:
    ids = []
    for word in text:
        piece = "\u2581" if word == " " else word
        ids += [PIECES.index(piece)] if piece in PIECES else list(word.encode())
    return ids


@given(st.text(alphabet="aé好你世界😀👩‍🚀 s中文", max_size=60), st.integers(0, 20))
def test_characters_of_single_bytes_come_whole_whatever_their_number(text: str, cut: int) -> None:
    ids = fallback_encode(text)
    detokenizer = Detokenizer(fallback_decode, ids[:cut])
    pieces = [*(detokenizer.push(token) for token in ids[cut:]), detokenizer.flush()]
    whole, prompt = fallback_decode(ids), fallback_decode(ids[:cut])
    if REPLACEMENT not in prompt:
        assert prompt + "".join(pieces) == whole
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_random_tokens_give_the_text_of_the_whole() -> None:
    for seed in range(1000):
        random = Random(seed)
        ids = [random.randrange(VOCAB) for _ in range(random.randrange(1, 40))]
        assert "".join(streamed(ids)) == tokenizer().decode(ids), f"seed {seed}"

"""Text as it comes, beside the text of the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from basaran_ops.text.detokenizer import MAX_UNCERTAIN, MAX_WINDOW, REPLACEMENT, Detokenizer
from basaran_ops.text.stop_checker import StopChecker
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import tiny_tokenizer
from .effort import EFFORT, examples

# fmt: off
PIECES = [
    " ", "  ", "the", " cat", "s", ".", "\n", "\t", "\r\n", "\x00", "a\u0301", "e\u0301\u0302", "ﬃ", "ß",
    "İ", "é", "中", "文。", "한", "ᄒ", "ा", "ไม่", "א", "\u202e", "\u200d", "\ufe0f", "\ufeff", "\ufffd",
    "\ufffd\ufffd", "😀", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇩🇪", "👍🏽",
    "\U0001d518", "\U0010ffff", "\ud7ff", "\ue000", "𐍈",
]
# fmt: on
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it: a token is any bytes."""
    return Tokenizer(tiny_tokenizer())


@cache
def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral and Gemma have it: words with their space, and bytes for what is in no word."""
    words = [
        "\u2581",
        "\u2581the",
        "\u2581cat",
        "s",
        "the",
        "cat",
        ".",
        "é",
        "\u2581中",
        "文",
        "😀",
        "\n",
        "\u2581\u2581",
    ]
    special = ["<unk>", "<s>", "</s>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [(name, -float(number > 258)) for number, name in enumerate(dict.fromkeys(names))]
    backend = Backend(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
        )
    )


@cache
def word_pieces() -> Tokenizer:
    """As BERT has it, and models made of it: what goes on begins with ##, and the rest gets a space."""
    names = [
        "[UNK]",
        "[SEP]",
        "the",
        "cat",
        "##s",
        "##é",
        "中",
        "文",
        ".",
        "##.",
        "'",
        "##t",
        "##ing",
        "😀",
        "a",
    ]
    backend = Backend(
        models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]"))


KINDS = [byte_level, byte_fallback, word_pieces]


def streamed(decode: Callable[[Sequence[int]], str], ids: Sequence[int], prompt: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode, prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", [byte_level, byte_fallback], ids=lambda kind: kind.__name__)
def test_any_text_comes_whole_wherever_its_prompt_ended(kind: Callable[[], Tokenizer]) -> None:
    decode = kind().decode

    @examples(300)
    @given(TEXTS, st.integers(0, 30))
    def check(text: str, cut: int) -> None:
        if kind is byte_fallback:
            text = text.replace(REPLACEMENT, "")
        ids = kind().encode(text, add_special_tokens=False)
        whole, shown = decode(ids), decode(ids[:cut])
        pieces = streamed(decode, ids[cut:], ids[:cut])
        if whole.startswith(shown):
            assert shown + "".join(pieces) == whole
        elif REPLACEMENT not in text:
            # The prompt ended inside a character, which the rest completes.
            assert whole.endswith("".join(pieces))
        if cut == 0 and REPLACEMENT not in text:
            assert not any(REPLACEMENT in piece for piece in pieces)

    check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_tokens_give_the_text_of_the_whole(kind: Callable[[], Tokenizer]) -> None:
    """Such as no text is encoded as: halves of characters, special tokens, ends of words without words."""
    tokenizer = kind()
    size = len(tokenizer.hf)
    for seed in range(1500 * EFFORT):
        random = Random(seed)
        few = [random.randrange(size) for _ in range(random.choice([2, 5, size]))]
        ids = [random.choice(few) for _ in range(random.choice([3, 20, 80]))]
        pieces = streamed(tokenizer.decode, ids, [])
        if _is_settled(tokenizer.decode, ids):
            whole = tokenizer.decode(ids)
            assert _few_replacements("".join(pieces)) == _few_replacements(whole), f"seed {seed}"
            assert len(ids) > MAX_WINDOW or "".join(pieces) == whole, f"seed {seed}"
        longest = max(len(tokenizer.decode([token])) for token in few) + 2
        assert max(map(len, pieces)) <= longest * MAX_WINDOW, "held back for ever"


def _is_settled(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> bool:
    """Whether no token changes the text of those before it but for unfinished characters at its end. A byte
    that fits nowhere makes replacements of all bytes next to it, letters included, in byte-fallback decoders.
    """
    whole = decode(ids)
    if decode == byte_fallback().decode and REPLACEMENT in whole[:-MAX_UNCERTAIN]:
        return False
    return all(whole.startswith(decode(ids[:end]).rstrip(REPLACEMENT)) for end in range(len(ids)))


def _few_replacements(text: str) -> str:
    """How many replacements broken bytes are is known only of as many as are decoded together."""
    return re.sub(f"{REPLACEMENT}+", REPLACEMENT, text)


def reference(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The first end of any stop string, and of those there the longest, looked for in the whole text."""
    found = [(text.find(each) + len(each), -len(each), each) for each in stop if each in text]
    if not found:
        return text, None
    end, _, first = min(found)
    return text[: end - len(first)], first


def test_stop_strings_are_found_whatever_the_text_and_its_parts() -> None:
    piece = st.sampled_from(PIECES) | st.sampled_from(["a", "b", "ab", "aba"])

    @examples(500)
    @given(
        st.lists(st.lists(piece, max_size=3).map("".join), max_size=12),
        st.lists(st.lists(piece, min_size=1, max_size=3).map("".join), min_size=1, max_size=5),
    )
    def check(parts: list[str], stop: list[str]) -> None:
        checker, text, out = StopChecker(stop), "".join(parts), ""
        expected, matched = reference(text, stop)
        for part in parts:
            out += checker.push(part)
            assert expected.startswith(out), "more than there is before a stop string"
            if checker.matched is None:
                assert not any(each in out for each in stop)
        assert checker.matched == matched
        assert out + checker.flush() == expected

    check()


@pytest.mark.parametrize("kind", [byte_level, byte_fallback], ids=lambda kind: kind.__name__)
def test_tokens_through_both_end_before_the_stop_string(kind: Callable[[], Tokenizer]) -> None:
    """As a request does it: tokens to text, text to what is shown."""
    decode = kind().decode

    @examples(200)
    @given(
        TEXTS, st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), st.randoms(use_true_random=False)
    )
    def check(text: str, stop: list[str], random: Random) -> None:
        ids = kind().encode(text, add_special_tokens=False)
        if kind is byte_level and random.random() < 0.3:
            ids += [random.randrange(3, 259) for _ in range(random.randint(1, 6))]
        detokenizer, checker, shown = Detokenizer(decode, []), StopChecker(stop), ""
        for token in ids:
            shown += checker.push(detokenizer.push(token))
        shown += checker.push(detokenizer.flush())
        shown += checker.flush()
        assert (shown, checker.matched) == reference(decode(ids), stop)

    check()

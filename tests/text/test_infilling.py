from __future__ import annotations

import pytest

from basaran_ops.text.infilling import SPELLINGS, Infilling
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import tiny_tokenizer

MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>")


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling[0])
def test_every_familys_tokens_are_found(spelling: tuple[str, str, str]) -> None:
    vocabulary = {"a": 0} | {token: number for number, token in enumerate(spelling, 7)}
    assert Infilling.of(vocabulary) == Infilling(7, 8, 9, ())


def test_two_of_three_tokens_are_none() -> None:
    assert Infilling.of({"<fim_prefix>": 1, "<fim_suffix>": 2}) is None


def test_a_prompt_is_prefix_suffix_middle() -> None:
    tokenizer = Tokenizer(tiny_tokenizer(MARKS))
    before, after = (tokenizer.encode(text) for text in ("the cat", " mat"))
    ids = tokenizer.encode_infilling("the cat", " mat")
    pre, suf, mid, pad = (tokenizer.hf.convert_tokens_to_ids(mark) for mark in MARKS)
    assert ids == [pre, *before, suf, *after, mid]
    assert tokenizer.encode_infilling(before, " mat") == ids
    assert tokenizer.infilling is not None
    assert tokenizer.infilling.ends == (pad,)


def test_the_tokens_that_every_text_starts_with_come_first() -> None:
    hf = tiny_tokenizer(MARKS)
    hf.add_bos_token = True
    hf.update_post_processor()
    tokenizer = Tokenizer(hf)
    assert tokenizer.encode("") == [1]
    ids = tokenizer.encode_infilling("a", "b")
    assert ids[:2] == [1, hf.convert_tokens_to_ids(MARKS[0])]
    assert ids.count(1) == 1


def test_a_vocabulary_without_such_tokens_says_so() -> None:
    with pytest.raises(ValueError, match="cannot fill in the middle"):
        Tokenizer(tiny_tokenizer()).encode_infilling("a", "b")

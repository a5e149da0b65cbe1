"""Log-probabilities as JSON: what real logits seldom bring about."""

from __future__ import annotations

import math

from basaran_ops.server.logprobs import chat_logprobs, completion_logprobs
from basaran_ops.text.tokenizer import Tokenizer
from basaran_ops.text_stream import TextToken

from ..tiny_models import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
A, B, C = (TOKENIZER.encode(letter)[0] for letter in "abc")
BYTES = [TOKENIZER.hf.convert_tokens_to_ids(token) for token in ("ð", "Ł")]
"""Two tokens that are each the beginning of a character: the same text, U+FFFD."""


def test_minus_infinity_is_minus_9999() -> None:
    token = TextToken("a", 0, A, -math.inf, ((B, -0.5), (A, -math.inf)))
    told = completion_logprobs([token], TOKENIZER)
    assert told["token_logprobs"] == [-9999.0]
    assert told["top_logprobs"] == [{"a": -9999.0, "b": -0.5}]
    (chat,) = chat_logprobs([token], TOKENIZER)["content"]
    assert chat["logprob"] == -9999.0
    assert [entry["logprob"] for entry in chat["top_logprobs"]] == [-0.5, -9999.0]


def test_the_sampled_token_comes_first_also_outside_the_likeliest() -> None:
    token = TextToken("c", 0, C, -4.0, ((A, -0.1), (B, -3.0)))
    assert list(completion_logprobs([token], TOKENIZER)["top_logprobs"][0].items()) == [
        ("c", -4.0),
        ("a", -0.1),
        ("b", -3.0),
    ]


def test_of_two_tokens_with_one_text_the_likelier_is_told() -> None:
    first, second = BYTES
    assert TOKENIZER.token_text(first) == TOKENIZER.token_text(second)
    token = TextToken("", 0, first, -2.0, ((second, -0.5), (first, -2.0)))
    assert completion_logprobs([token], TOKENIZER)["top_logprobs"] == [{"\ufffd": -0.5}]


def test_a_number_is_told_as_it_is() -> None:
    logprob = -0.1234567890123456
    told = completion_logprobs([TextToken("a", 0, A, logprob, ((A, logprob),))], TOKENIZER)
    assert told["token_logprobs"][0] == told["top_logprobs"][0]["a"] == logprob

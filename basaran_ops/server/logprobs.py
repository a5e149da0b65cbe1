"""Log-probabilities in the two shapes that OpenAI has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from ..text_stream import TextToken

LEAST = -9999.0
"""Written for minus infinity, which JSON cannot say."""


def completion_logprobs(tokens: Sequence[TextToken], tokenizer: Tokenizer) -> dict[str, list[Any]]:
    """The `logprobs` object of a text completion's choice."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token, tokenizer) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _top(token: TextToken, tokenizer: Tokenizer) -> dict[str, float] | None:
    """The likeliest tokens by text, the chosen one first. Where two have the same text the likelier stays."""
    if token.logprob is None:
        return None
    told: dict[str, float] = {}
    for token_id, logprob in ((token.token_id, token.logprob), *token.top):
        text = tokenizer.token_text(token_id)
        told[text] = max(_known(logprob), told.get(text, LEAST))
    return told


def chat_logprobs(tokens: Sequence[TextToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """The `logprobs` object of a chat completion's choice."""
    return {"content": [_chat_token(token, tokenizer) for token in tokens], "refusal": None}


def _chat_token(token: TextToken, tokenizer: Tokenizer) -> dict[str, Any]:
    return _chat_entry(token.token_id, token.logprob or 0.0, tokenizer) | {
        "top_logprobs": [_chat_entry(token_id, logprob, tokenizer) for token_id, logprob in token.top]
    }


def _chat_entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.token_text(token_id)
    return {"token": text, "logprob": _known(logprob), "bytes": list(tokenizer.token_bytes(token_id))}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else _known(logprob)


def _known(logprob: float) -> float:
    return max(logprob, LEAST)

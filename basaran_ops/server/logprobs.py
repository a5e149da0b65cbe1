"""Log-probabilities in the two shapes that OpenAI has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from ..text_stream import TextToken

LEAST = -9999.0
"""Written for minus infinity, which JSON cannot say."""


def completion_logprobs(
    tokens: Sequence[TextToken], tokenizer: Tokenizer, *, token_ids: bool = False
) -> dict[str, list[Any]]:
    """The `logprobs` object of a text completion's choice; with `token_ids` the ids in top_logprobs too."""
    told: dict[str, list[Any]] = {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token, tokenizer) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
    if token_ids:
        told["top_token_ids"] = [_top_ids(token, tokenizer) for token in tokens]
    return told


def _top(token: TextToken, tokenizer: Tokenizer) -> dict[str, float] | None:
    """The likeliest tokens by text, the chosen one first. Where two have the same text the likelier stays."""
    if token.logprob is None:
        return None
    return {text: _known(logprob) for text, (_, logprob) in _likeliest(token, tokenizer).items()}


def _top_ids(token: TextToken, tokenizer: Tokenizer) -> dict[str, int] | None:
    """The ids of the same tokens."""
    if token.logprob is None:
        return None
    return {text: token_id for text, (token_id, _) in _likeliest(token, tokenizer).items()}


def _likeliest(token: TextToken, tokenizer: Tokenizer) -> dict[str, tuple[int, float]]:
    assert token.logprob is not None
    told: dict[str, tuple[int, float]] = {}
    for token_id, logprob in ((token.token_id, token.logprob), *token.top):
        text = tokenizer.token_text(token_id)
        if text not in told or logprob > told[text][1]:
            told[text] = (token_id, logprob)
    return told


def chat_logprobs(
    tokens: Sequence[TextToken], tokenizer: Tokenizer, *, token_ids: bool = False
) -> dict[str, Any]:
    """The `logprobs` object of a chat completion's choice; with `token_ids` each token's id too."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.token_text(token_id)
        told = {"token": text, "logprob": _known(logprob), "bytes": list(tokenizer.token_bytes(token_id))}
        return told | ({"token_id": token_id} if token_ids else {})

    content = [
        entry(token.token_id, token.logprob or 0.0) | {"top_logprobs": [entry(*top) for top in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def token_ids(tokens: Sequence[TextToken], *, told: bool) -> dict[str, list[int]]:
    """Where they are to be told, the ids of the tokens that are not an echoed prompt's."""
    return {"token_ids": [token.token_id for token in tokens if token.generated]} if told else {}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else _known(logprob)


def _known(logprob: float) -> float:
    return max(logprob, LEAST)

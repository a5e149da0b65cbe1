"""POST /tokenize, POST /detokenize, GET /tokenizer_info, in vLLM's shapes, which lm-eval's client reads."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from .body import read_body
from .conversation import encode
from .protocol import DetokenizeRequest, TokenizeRequest
from .service import service

blueprint = Blueprint("tokenize", __name__)


@blueprint.post("/tokenize")
def tokenize() -> Response:
    """Token ids of a prompt, or of a conversation as the chat template renders it."""
    asked = TokenizeRequest.parse(read_body(), service().settings)
    service().adapter_for(asked.model)
    ids = _encode(asked)
    model = service().model
    info = model.info
    return jsonify(
        tokens=ids,
        count=len(ids),
        max_model_len=None if info is None else info.context_length,
        token_strs=[model.tokenizer.token_text(token) for token in ids] if asked.return_token_strs else None,
    )


def _encode(asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        return encode(service().model, asked.messages, asked)
    assert asked.prompt is not None, "one of the two is given"
    return service().model.tokenizer.encode(
        asked.prompt, add_special_tokens=asked.add_special_tokens is not False
    )


@blueprint.post("/detokenize")
def detokenize() -> Response:
    """Text of token ids."""
    asked = DetokenizeRequest.parse(read_body(), service().settings)
    service().adapter_for(asked.model)
    service().model.check_token_ids("tokens", asked.tokens)
    return jsonify(prompt=service().model.tokenizer.decode(asked.tokens))


@blueprint.get("/tokenizer_info")
def tokenizer_info() -> Response:
    """What a client must know to encode as the server does."""
    return jsonify(service().model.tokenizer.describe())

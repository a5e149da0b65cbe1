"""POST /tokenize, POST /detokenize, GET /tokenizer_info, in vLLM's shapes, which lm-eval's client reads."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from .protocol import DetokenizeRequest, TokenizeRequest
from .service import service

blueprint = Blueprint("tokenize", __name__)


@blueprint.post("/tokenize")
def tokenize() -> Response:
    """Token ids of a prompt."""
    asked = TokenizeRequest.read(service().bodies.read(request), {})
    model = service().model
    ids = model.tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens)
    info = model.info
    return jsonify(
        tokens=ids,
        count=len(ids),
        max_model_len=None if info is None else info.context_length,
        token_strs=[model.tokenizer.token_text(token) for token in ids] if asked.return_token_strs else None,
    )


@blueprint.post("/detokenize")
def detokenize() -> Response:
    """Text of token ids."""
    asked = DetokenizeRequest.read(service().bodies.read(request), {})
    service().model.check_token_ids("tokens", asked.tokens)
    return jsonify(prompt=service().model.tokenizer.decode(asked.tokens))


@blueprint.get("/tokenizer_info")
def tokenizer_info() -> Response:
    """What a client must know to encode as the server does."""
    return jsonify(service().model.tokenizer.describe())

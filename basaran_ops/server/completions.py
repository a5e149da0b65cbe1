"""POST and GET /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, request

from ..text_stream import TextOutput, TextToken, best, collect
from .body import read_body
from .generation import respond, usage
from .logprobs import completion_logprobs, token_ids
from .protocol import CompletionRequest
from .service import service

blueprint = Blueprint("completions", __name__)


@blueprint.route("/v1/completions", methods=["GET", "POST"])
def create_completion() -> Response:
    """Complete one or more prompts, streamed or whole."""
    settings = service().settings
    body = read_body()
    if request.method in ("GET", "HEAD") and not body:
        body = b"{}"
    asked = CompletionRequest.parse(body, settings, request.args.to_dict(flat=False))
    adapter = service().adapter_for(asked.model)
    params = asked.sampling_params(settings)
    # A limit that was not asked for must not be the reason for a refusal.
    stream = service().model.generate(
        asked.prompt,
        params,
        suffix=asked.suffix or "",
        echo=asked.echo,
        fit=asked.max_tokens is None,
        token_ids=asked.return_token_ids,
        adapter=adapter,
        watch=service().watch("completions", adapter or service().model_name, streamed=asked.stream),
    )
    template: dict[str, Any] = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": adapter or service().model_name,
    }
    scored = asked.logprobs is not None
    # Events are made after the view has returned, when there is no service() any more.
    tokenizer = service().model.tokenizer
    begun: set[int] = set()

    def make_choice(index: int, text: str, tokens: Sequence[TextToken], reason: str | None) -> dict[str, Any]:
        ids = asked.return_token_ids
        logprobs = completion_logprobs(tokens, tokenizer, token_ids=ids) if scored else None
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        if ids and index not in begun:
            begun.add(index)
            choice["prompt_token_ids"] = list(stream.prompt_ids[index // asked.n])
        return choice | token_ids(tokens, told=ids)

    def whole() -> dict[str, Any]:
        choices = [
            make_choice(position, choice.text, choice.tokens, choice.finish_reason)
            for position, choice in enumerate(best(collect(stream), asked.n, asked.sequences))
        ]
        return template | {"choices": choices, "usage": usage(stream)}

    def chunk(output: TextOutput) -> dict[str, Any]:
        choice = make_choice(output.index, output.text, output.tokens, output.finish_reason)
        return template | ({"usage": None} if asked.include_usage else {}) | {"choices": [choice]}

    def last() -> dict[str, Any]:
        return template | {"choices": [], "usage": usage(stream)}

    if asked.stream:
        return respond(stream, chunk=chunk, last=last if asked.include_usage else None)
    return respond(stream, whole=whole)

"""POST and GET /v1/completions."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from ..errors import BasaranError, StreamClosed
from ..stream_model import TextOutput, TextStream, Usage
from . import sse
from .body import read_body
from .error_responses import error_body, unexpected
from .protocol import CompletionRequest
from .service import service

log = logging.getLogger(__name__)

blueprint = Blueprint("completions", __name__)


@blueprint.route("/v1/completions", methods=["GET", "POST"])
def create_completion() -> Response:
    """Complete one or more prompts, streamed or whole."""
    body = read_body(request, service().settings.server_max_body)
    asked = CompletionRequest.parse(body, request.args.to_dict(flat=False), service().settings)
    stream = service().model.generate(asked.prompt, asked.sampling_params())
    unwatch = service().departures.watch(request.environ.get("gunicorn.socket"), stream.close)
    template = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service().model_name,
    }
    if asked.stream:
        response = Response(_events(stream, template, asked.include_usage), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
    else:
        try:
            response = _whole(stream, template)
        finally:
            stream.close()
            unwatch()
    # A generator that is never started never runs its finally: this does, whatever happens.
    response.call_on_close(stream.close)
    response.call_on_close(unwatch)
    return response


def _whole(stream: TextStream, template: dict[str, Any]) -> Response:
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str | None] = {}
    for outputs in stream.outputs():
        for output in outputs:
            texts.setdefault(output.index, []).append(output.text)
            reasons[output.index] = output.finish_reason
    choices = [_choice(TextOutput(i, "".join(texts[i])), reasons[i]) for i in sorted(texts)]
    return jsonify(template | {"choices": choices, "usage": _usage(stream.usage)})


def _events(stream: TextStream, template: dict[str, Any], include_usage: bool) -> Iterator[bytes]:
    if include_usage:
        template = template | {"usage": None}
    try:
        for outputs in stream.outputs(idle=sse.KEEP_ALIVE_SECONDS):
            if not outputs:
                yield sse.KEEP_ALIVE
                continue
            yield b"".join(
                sse.event(template | {"choices": [_choice(output, output.finish_reason)]})
                for output in outputs
            )
        if include_usage:
            yield sse.event(template | {"choices": [], "usage": _usage(stream.usage)})
        yield sse.DONE
    except StreamClosed:
        return  # the client has left: nobody reads what we would say
    except BasaranError as error:
        log.warning("a stream ended with an error: %s", error.message)
        yield sse.event(error_body(error)) + sse.DONE
    except Exception as error:
        yield sse.event(error_body(unexpected(error))) + sse.DONE


def _choice(output: TextOutput, reason: str | None) -> dict[str, Any]:
    return {"text": output.text, "index": output.index, "logprobs": None, "finish_reason": reason}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

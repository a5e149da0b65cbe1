"""What completions and chat share: a text stream becomes a response, and ends with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, g, jsonify, request

from ..errors import BasaranError, StreamClosed
from ..text_stream import TextOutput, TextStream
from . import sse
from .error_responses import error_body, unexpected
from .service import service


def respond(
    stream: TextStream,
    *,
    whole: Callable[[], dict[str, Any]] | None = None,
    chunk: Callable[[TextOutput], dict[str, Any]] | None = None,
    last: Callable[[], dict[str, Any]] | None = None,
) -> Response:
    """A JSON response made by `whole`, or an event stream of `chunk`s and perhaps a `last` one.

    The client's departure closes the stream, in whatever phase; so does the response's end.
    """
    g.admitted = True

    def leave() -> None:
        stream.close(client_gone=True)

    unwatch = service().departures.watch(request.environ.get("gunicorn.socket"), leave)
    if chunk is not None:
        metrics = service().metrics
        metrics.stream_opened()
        response = Response(_events(stream, chunk, last), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(metrics.stream_closed)
    else:
        assert whole is not None
        try:
            response = jsonify(whole())
        finally:
            stream.close()
            unwatch()
    # A generator that is never started never runs its finally: this does, whatever happens.
    response.call_on_close(leave)
    response.call_on_close(unwatch)
    return response


def _events(
    stream: TextStream,
    chunk: Callable[[TextOutput], dict[str, Any]],
    last: Callable[[], dict[str, Any]] | None,
) -> Iterator[bytes]:
    try:
        for outputs in stream.outputs(idle=sse.KEEP_ALIVE_SECONDS):
            if outputs:
                yield b"".join(sse.event(chunk(output)) for output in outputs)
            else:
                yield sse.KEEP_ALIVE
        if last is not None:
            yield sse.event(last())
        yield sse.DONE
    except StreamClosed:
        return  # the client has left: nobody reads what we would say
    except BasaranError as error:
        yield sse.event(error_body(error)) + sse.DONE
    except Exception as error:
        yield sse.event(error_body(unexpected(error))) + sse.DONE


def usage(stream: TextStream) -> dict[str, Any]:
    """The `usage` object: a prompt counts once, whatever n is."""
    count = stream.usage
    return {
        "prompt_tokens": count.prompt_tokens,
        "completion_tokens": count.completion_tokens,
        "total_tokens": count.prompt_tokens + count.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": count.cached_tokens},
    }

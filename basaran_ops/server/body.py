"""The body of the current request."""

from __future__ import annotations

from flask import request


def read_body() -> bytes:
    """The whole body, whatever its content type. Never waits: the worker's main loop has read it.

    Raises what that found wrong: BadRequest, RequestTimeout, RequestEntityTooLarge, Overloaded or NotReady.
    """
    # Not request.get_data(), which trusts a Content-Length and gives nothing for some content types.
    body: bytes = request.environ["wsgi.input"].read()
    return body

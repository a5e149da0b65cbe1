"""Request bodies, read within their limit."""

from __future__ import annotations

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge


def read_body(request: Request, limit: int) -> bytes:
    """The whole body, whatever its content type.

    Raises RequestEntityTooLarge above `limit` bytes. Werkzeug's own limit cuts a chunked body silently.
    """
    if request.content_length is not None and request.content_length > limit:
        raise RequestEntityTooLarge(f"the body is larger than {limit} bytes")
    source = request.environ["wsgi.input"]
    body: bytes = source.read(limit + 1 if request.content_length is None else request.content_length)
    if len(body) > limit:
        raise RequestEntityTooLarge(f"the body is larger than {limit} bytes")
    return body

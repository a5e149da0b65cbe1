"""Request bodies, read within their limits of size and time."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, RequestTimeout


class BodyReader:
    """Reads bodies on request threads; the worker's main loop calls `expire`.

    `_deadlines` holds one entry for each body that is being read. An expired one's socket is shut down for
    reading, which ends the read: no timeout on the socket itself bounds a client that trickles.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        """Bodies of at most `limit` bytes, each within `seconds`."""
        self._limit = limit
        self._seconds = seconds
        self._deadlines: dict[socket.socket, float] = {}

    def read(self, request: Request) -> bytes:
        """The whole body, whatever its content type.

        Raises RequestEntityTooLarge, RequestTimeout, or BadRequest for one that is malformed or breaks off.
        """
        length = request.content_length
        if length is not None and length > self._limit:
            raise RequestEntityTooLarge(self._too_large)
        client = request.environ.get("gunicorn.socket")
        deadline = time.monotonic() + self._seconds
        if client is not None:
            self._deadlines[client] = deadline
        try:
            # One more than allowed, to see whether there is more: Werkzeug's own limit cuts silently.
            body: bytes = request.environ["wsgi.input"].read(self._limit + 1 if length is None else length)
        except (ParseException, OSError) as error:
            self._check_deadline(deadline)
            raise BadRequest(f"the body cannot be read: {type(error).__name__}") from error
        finally:
            if client is not None:
                self._deadlines.pop(client, None)
        if len(body) > self._limit:
            raise RequestEntityTooLarge(self._too_large)
        if length is not None and len(body) < length:
            self._check_deadline(deadline)
            raise BadRequest(f"the body has {len(body)} bytes, but its length was said to be {length}")
        return body

    def expire(self, now: float) -> None:
        """End the reading of bodies that are late at `now` (time.monotonic())."""
        for client, deadline in list(self._deadlines.items()):
            if deadline <= now:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RD)

    def _check_deadline(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise RequestTimeout(f"the body did not come within {self._seconds:g} seconds")

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self._limit} bytes"

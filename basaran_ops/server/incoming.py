"""A connection's next request, while it arrives.

The worker's main loop feeds what it has read; a request thread gets the request once all of it is there, or
once it is clear what is wrong with it. Gunicorn's parser reads the head and says how the body is framed. It
reads from what was fed and has no socket, so that nothing here can block.
"""

from __future__ import annotations

import io
import re
from typing import Any, Literal, NoReturn, Protocol

from gunicorn.http.body import CHUNK_EXT_RE, ChunkedReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

HEAD_LIMIT = 64 * 1024
"""Bytes that a head may have, and a chunked body's trailers; more are refused before any thread sees them."""

LINE_LIMIT = 8190
"""Bytes of a chunk's first line: its size and extensions. Gunicorn's own limit."""

HEXADECIMAL = re.compile(rb"[0-9a-fA-F]+")

HEAD_END = b"\r\n\r\n"

REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([!-~]{1,128})[ \t]*\r\n", re.IGNORECASE)


class HeadTooLong(Exception):
    """The head has more than HEAD_LIMIT bytes."""


class IncomingParser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's parser of one connection.

    The main loop calls `feed` until it says that the request is complete, or `refuse`; then a thread takes
    the request by next(); afterwards the main loop calls `release`.
    """

    def __init__(self, cfg: Any, address: object, max_body: int) -> None:
        """Bodies may have `max_body` bytes."""
        super().__init__(cfg, (), address)
        self.mesg: Any = None
        self._max_body = max_body
        self._head = bytearray()
        self._body: _Body | None = None
        self._ahead = b""
        self.held = 0
        """Bytes of the request's body that are in memory."""
        self.expects_continue = False
        """Whether the client waits to be told that its body is wanted."""

    @property
    def request(self) -> Request | None:
        """The request, once its head is there."""
        return self.mesg

    @property
    def request_id(self) -> str | None:
        """What a head that cannot be read gives as its x-request-id."""
        found = REQUEST_ID.search(self._head)
        return None if found is None else found[1].decode()

    def feed(self, data: bytes) -> bool:
        """Take what has arrived; whether the request is complete.

        Raises HeadTooLong and gunicorn's errors for a head, RequestEntityTooLarge and BadRequest for a body.
        """
        if self.mesg is None:
            if not self._feed_head(data):
                return False
            data = self.unreader.take_buffered()
        assert self._body is not None
        rest = self._body.feed(data)
        self.held = self._body.content.tell()
        if rest is None:
            return False
        self._body.content.seek(0)
        self.mesg.body = self._body.content
        self._ahead = rest
        return True

    def refuse(self, error: Exception) -> None:
        """Give the body up: who reads it gets the error. The connection cannot go on after the answer."""
        self._body = None
        self.held = 0
        # A traceback would keep what its frames know of: the body.
        self.mesg.body = RefusedBody(error.with_traceback(None))
        self.mesg.force_close()

    def release(self) -> bytes:
        """Forget the request, which is done; what the client has sent beyond it."""
        if self.mesg is not None:
            # Gunicorn's chunked reader, which is part of a cycle, keeps the request.
            self.mesg.body = None
        self.mesg = self._body = None
        self.held = 0
        ahead, self._ahead = self._ahead, b""
        return ahead

    def __next__(self) -> Request:
        return self.mesg

    def finish_body(self, *args: object, **kwargs: object) -> bool:
        """Nothing of a body is left where the next request is looked for."""
        return True

    def _feed_head(self, data: bytes) -> bool:
        searched = max(0, len(self._head) - len(HEAD_END))
        self._head += data
        end = self._head.find(HEAD_END, searched)
        if end > HEAD_LIMIT or (end < 0 and len(self._head) > HEAD_LIMIT):
            raise HeadTooLong
        if end < 0:
            return False
        self.unreader.unread(bytes(self._head))
        request = super().__next__()
        self._head.clear()
        # Else gunicorn tells the client to go on when the app is called.
        self.expects_continue = request._expected_100_continue  # noqa: SLF001 - nothing public says it
        request._expected_100_continue = False  # noqa: SLF001
        reader = request.body.reader
        if isinstance(reader, ChunkedReader):
            self._body = _ChunkedBody(request, self._max_body)
        else:
            self._body = _SizedBody(reader.length, self._max_body)
        return True


class RefusedBody:
    """Stands for a body that the main loop has given up."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def read(self, size: int = -1) -> NoReturn:
        raise self._error


class _Body(Protocol):
    content: io.BytesIO

    def feed(self, data: bytes) -> bytes | None:
        """Take what has arrived. Once the body is complete, what follows it; None before."""
        ...


class _SizedBody:
    """A body that has a Content-Length, or none."""

    def __init__(self, length: int, limit: int) -> None:
        self.content = io.BytesIO()
        self._left = length
        self._limit = limit

    def feed(self, data: bytes) -> bytes | None:
        if self._left > self._limit:
            raise _too_large(self._limit)
        body, rest = data[: self._left], data[self._left :]
        self.content.write(body)
        self._left -= len(body)
        return None if self._left else rest


class _ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1), decoded as it comes.

    Not by gunicorn's reader, which waits for what it misses, and copies what it has once per chunk.
    """

    def __init__(self, request: Request, limit: int) -> None:
        self.content = io.BytesIO()
        self._request = request
        self._limit = limit
        self._left = 0
        self._line = bytearray()
        self._trailers = bytearray()
        self._expected: Literal["size", "chunk end", "trailer", "nothing"] = "size"

    def feed(self, data: bytes) -> bytes | None:
        position = 0
        while position < len(data) and self._expected != "nothing":
            if self._left:
                piece = data[position : position + self._left]
                self.content.write(piece)
                self._left -= len(piece)
                position += len(piece)
            else:
                position = self._feed_line(data, position)
        return data[position:] if self._expected == "nothing" else None

    def _feed_line(self, data: bytes, start: int) -> int:
        """Take what there is of a line; where to go on."""
        end = data.find(b"\n", start) + 1 or len(data)
        self._line += data[start:end]
        if len(self._line) > LINE_LIMIT:
            raise _malformed(f"a line has more than {LINE_LIMIT} bytes")
        if self._expected == "chunk end" and not b"\r\n".startswith(self._line):
            raise _malformed("one is longer than its size")
        if self._line.endswith(b"\n"):
            line = bytes(self._line)
            self._line.clear()
            if not line.endswith(b"\r\n"):
                raise _malformed("a line ends without a carriage return")
            self._take_line(line[:-2])
        return end

    def _take_line(self, line: bytes) -> None:
        if self._expected == "size":
            self._take_size(line)
        elif self._expected == "trailer":
            self._take_trailer(line)
        else:
            self._expected = "size"

    def _take_size(self, line: bytes) -> None:
        digits, semicolon, extension = line.partition(b";")
        if semicolon:
            digits = digits.rstrip(b" \t")
        if not HEXADECIMAL.fullmatch(digits):
            raise _malformed("a size is not hexadecimal")
        if semicolon and not CHUNK_EXT_RE.fullmatch(b";" + extension):
            raise _malformed("an extension is no list of tokens")
        self._left = int(digits, 16)
        if self.content.tell() + self._left > self._limit:
            raise _too_large(self._limit)
        self._expected = "chunk end" if self._left else "trailer"

    def _take_trailer(self, line: bytes) -> None:
        if line:
            self._trailers += line + b"\r\n"
            if len(self._trailers) > HEAD_LIMIT:
                raise _malformed(f"the trailers have more than {HEAD_LIMIT} bytes")
            return
        if self._trailers:
            try:
                self._request.trailers = self._request.parse_headers(
                    bytes(self._trailers[:-2]), from_trailer=True
                )
            except Exception as error:
                raise _malformed(f"a trailer is refused: {type(error).__name__}") from error
        self._expected = "nothing"


def _malformed(detail: str) -> BadRequest:
    return BadRequest(f"the body's chunks cannot be read: {detail}")


def _too_large(limit: int) -> RequestEntityTooLarge:
    """The error for a body beyond the limit."""
    return RequestEntityTooLarge(f"the body is larger than {limit} bytes")

"""What arrives in pieces is read as gunicorn reads it whole."""

from __future__ import annotations

import gc
import io
import weakref
from dataclasses import dataclass

import pytest
from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.parser import RequestParser
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge

from basaran_ops.server.incoming import HEAD_LIMIT, LINE_LIMIT, HeadTooLong, IncomingParser

MAX_BODY = 1000

ADDRESS = ("127.0.0.1", 1)

CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def incoming(max_body: int = MAX_BODY) -> IncomingParser:
    return IncomingParser(Config(), ADDRESS, max_body)


@dataclass
class Read:
    """What was made of some bytes."""

    body: bytes
    trailers: list[tuple[str, str]]
    rest: bytes


def whole(data: bytes) -> Read:
    """As gunicorn reads it when all of it is there."""
    parser = RequestParser(Config(), iter([data]), ADDRESS)
    request = next(parser)
    body = request.body.read()
    return Read(body, request.trailers, parser.unreader.take_buffered())


def piecewise(data: bytes, sizes: list[int]) -> Read | None:
    """As it is read in pieces, the last of what is left; None where the request is not complete."""
    parser = incoming()
    start = 0
    for size in [*sizes, len(data)]:
        piece = data[start : start + size]
        start += size
        if piece and parser.feed(piece):
            request = next(parser)
            return Read(request.body.read(), request.trailers, parser.release() + data[start:])
    return None


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


bodies = st.binary(max_size=200)

extensions = st.sampled_from([b"", b";a", b" ; a=b", b';q="x y";z', b";" + b"n" * 300])

trailers = st.sampled_from([b"", b"X-Sum: 1\r\n", b"X-Sum: 1\r\nX-More: \t2\r\n"])

chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=40), extensions), max_size=6)

sized_requests = bodies.map(
    lambda body: b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
)

chunked_requests = st.builds(
    lambda parts, extension, trailers: (
        CHUNKED + b"".join(chunk(*part) for part in parts) + b"0%b\r\n%b\r\n" % (extension, trailers)
    ),
    chunks,
    extensions,
    trailers,
)

requests = st.one_of(
    sized_requests,
    chunked_requests,
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ]
    ),
)

pieces = st.lists(st.integers(1, 30), max_size=60)


@given(requests, pieces, st.binary(max_size=60))
def test_a_request_in_pieces_is_gunicorns_of_the_whole(data: bytes, sizes: list[int], ahead: bytes) -> None:
    assert piecewise(data + ahead, sizes) == whole(data + ahead)


@given(requests, pieces)
def test_it_is_complete_with_its_last_byte_and_not_before(data: bytes, sizes: list[int]) -> None:
    assert piecewise(data[:-1], sizes) is None
    assert piecewise(data, [1] * len(data)) == whole(data)


@given(chunked_requests, st.data())
@example(CHUNKED + b"5\r\nabcdeXX0\r\n\r\n", None)
@example(CHUNKED + b"5\r\nabcdeXX\r\n0\r\n\r\n", None)
@example(CHUNKED + b"5 \r\nabcde\r\n0\r\n\r\n", None)
@example(CHUNKED + b"5\nabcde\r\n0\r\n\r\n", None)
@example(CHUNKED + b"\r\n\r\n", None)
@example(CHUNKED + b"-1\r\na\r\n0\r\n\r\n", None)
@example(CHUNKED + b"0x1\r\na\r\n0\r\n\r\n", None)
@example(CHUNKED + b"1_0\r\na\r\n0\r\n\r\n", None)
@example(CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", None)
@example(CHUNKED + b"0\r\nX: 1\n\r\n\r\n", None)
def test_a_spoilt_body_is_gunicorns_or_refused_by_both(data: bytes, drawn: st.DataObject | None) -> None:
    if drawn is not None:
        at = drawn.draw(st.integers(len(CHUNKED), len(data) - 1), label="at")
        spoilt = drawn.draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b";", b"f", b"0", b" ", b"\xff"]))
        data = data[:at] + spoilt + data[at + 1 :]
    try:
        expected = whole(data)
    except (errors.ParseException, errors.NoMoreData):
        expected = None
    for sizes in ([], [1] * len(data)):
        try:
            read = piecewise(data, sizes)
        except (BadRequest, RequestEntityTooLarge):
            read = None
        assert read == expected


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"NONSENSE\r\n\r\n", errors.InvalidRequestLine),
        (b"\r\n\r\n", errors.InvalidRequestLine),
        (b"GET / HTTP/3.0\r\n\r\n", errors.InvalidHTTPVersion),
        (b"GET / HTTP/1.1\r\nBad Header : 1\r\n\r\n", errors.InvalidHeaderName),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", errors.InvalidHeader),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", errors.InvalidHeader),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", errors.InvalidHeader),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", errors.InvalidHeader),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", errors.InvalidHeader),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", errors.InvalidHeader),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: rot13\r\n\r\n", errors.UnsupportedTransferCoding),
        (b"POST / HTTP/1.1\r\nExpect: money\r\n\r\n", errors.ExpectationFailed),
    ],
    ids=repr,
)
def test_a_head_that_gunicorn_refuses_is_refused(head: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        whole(head)
    with pytest.raises(error):
        incoming().feed(head)
    with pytest.raises(error):
        piecewise(head, [1] * len(head))


def test_a_head_may_be_so_long() -> None:
    start = b"GET / HTTP/1.1\r\n"
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 8000) for number in range(8))
    longest = start + fields + b"Z: " + b"z" * (HEAD_LIMIT - len(start + fields) - 3)
    assert incoming().feed(longest + b"\r\n\r\n")
    with pytest.raises(HeadTooLong):
        incoming().feed(longest + b"z\r\n\r\n")
    with pytest.raises(HeadTooLong):
        incoming().feed(longest + b"z")


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001,
        b"POST / HTTP/1.1\r\nContent-Length: 999999999999999999999\r\n\r\n",
        CHUNKED + b"3e9\r\n",
        CHUNKED + chunk(b"x" * 900) + b"65\r\n",
        CHUNKED + b"f" * 5000 + b"\r\n",
    ],
    ids=lambda data: repr(data[:70]),
)
def test_a_body_over_the_limit_is_refused_as_soon_as_that_is_known(data: bytes) -> None:
    with pytest.raises(RequestEntityTooLarge):
        incoming().feed(data)


def test_a_body_at_the_limit_is_taken() -> None:
    body = b"x" * MAX_BODY
    assert piecewise(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + body, []) == Read(body, [], b"")
    ones = b"".join(chunk(b"x") for _ in range(MAX_BODY))
    assert piecewise(CHUNKED + ones + b"0\r\n\r\n", [100] * 100) == Read(body, [], b"")


@pytest.mark.parametrize(
    "body",
    [
        b"1;" + b"x" * LINE_LIMIT,
        b"0\r\n" + b"".join(b"X-%d: %b\r\n" % (number, b"y" * 8000) for number in range(9)),
    ],
    ids=["extension", "trailers"],
)
def test_framing_without_end_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        incoming().feed(CHUNKED + body)


def test_what_is_held_is_what_has_come_of_the_body() -> None:
    parser = incoming()
    parser.feed(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
    assert parser.held == 0
    parser.feed(b"x" * 60)
    assert parser.held == 60
    assert parser.feed(b"x" * 60)
    assert parser.held == 100
    assert parser.release() == b"x" * 20
    assert parser.held == 0


def test_a_refused_body_is_told_by_its_reader_and_ends_the_connection() -> None:
    parser = incoming()
    parser.feed(CHUNKED + b"40\r\nabc")
    assert not parser.request.should_close()
    parser.refuse(BadRequest("why"))
    request = next(parser)
    assert request.should_close()
    with pytest.raises(HTTPException, match="why"):
        request.body.read()


class Watched(io.BytesIO):
    """One that can be referred to weakly."""


@pytest.mark.parametrize("how", ["refuse", "release"])
def test_nothing_holds_a_body_that_is_given_up(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Megabytes must not wait for the garbage collector.
    monkeypatch.setattr("basaran_ops.server.incoming.io.BytesIO", Watched)
    parser = incoming()
    parser.feed(CHUNKED + chunk(b"x" * 500))
    content = weakref.ref(parser._body.content)
    gc.disable()
    try:
        if how == "release":
            parser.feed(b"0\r\n\r\n")
            parser.release()
        else:
            with pytest.raises(BadRequest) as refused:
                parser.feed(b"spoilt\r\n")
            error = refused.value
            del refused
            parser.refuse(error)
        assert content() is None
    finally:
        gc.enable()


def test_a_client_that_waits_to_go_on_is_known_and_gunicorn_does_not_tell_it_again() -> None:
    parser = incoming()
    parser.feed(b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
    assert parser.expects_continue
    assert not parser.request._expected_100_continue
    old = incoming()
    old.feed(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert not old.expects_continue


def test_requests_follow_each_other_on_one_connection() -> None:
    parser = incoming()
    data = b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /b HTTP/1.1\r\n\r\n" + CHUNKED + b"0\r\n\r\n"
    seen = []
    while data:
        assert parser.feed(data)
        request = next(parser)
        seen.append((request.path, request.req_number))
        assert parser.finish_body()
        data = parser.release()
    assert seen == [("/a", 1), ("/b", 2), ("/", 3)]


def test_an_unreadable_head_may_still_say_what_it_calls_itself() -> None:
    parser = incoming()
    with pytest.raises(errors.InvalidHeaderName):
        parser.feed(b"GET / HTTP/1.1\r\nX-Request-ID: me-1\r\nBad Header : 1\r\n\r\n")
    assert parser.request_id == "me-1"

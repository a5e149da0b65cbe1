"""The worker's mends, on a real gunicorn over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..running_server import RunningServer, running_server
from ..scrape import Scrape

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
COMPLETION = b'{"prompt": "the", "max_tokens": 2}'


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """18 request threads, two seconds for a head, 10,000 bytes for a body."""
    log = tmp_path_factory.mktemp("worker") / "log"
    with running_server(
        log,
        MODEL=str(tiny_path),
        ENGINE_SLOTS="2",
        SERVER_QUEUE_LIMIT="0",
        SERVER_HEAD_TIMEOUT="2",
        SERVER_BODY_TIMEOUT="2",
        SERVER_MAX_BODY="10000",
    ) as server:
        yield server.wait_ready()


@pytest.fixture
def connect(server: RunningServer) -> Iterator[object]:
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            stack.callback(connection.close)
            return connection

        yield connect


def answer(connection: socket.socket, seconds: float = 1) -> bytes:
    """Everything until the server closes or says no more for so long."""
    data = b""
    connection.settimeout(seconds)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def post(body: bytes, head: bytes = b"", path: bytes = b"/v1/completions") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n%b" % (path, length, head, body)


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + framed
        + b"0\r\n\r\n"
    )


def quick(server: RunningServer) -> float:
    """Seconds that a new client waits for /health."""
    started = time.monotonic()
    # Not httpx: making a client of it takes longer than all that is measured here.
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
    return time.monotonic() - started


def test_clients_that_trickle_heads_hold_no_thread_and_are_dropped(
    server: RunningServer, connect: object
) -> None:
    slow = [connect() for _ in range(60)]
    for connection in slow:
        connection.sendall(HEAD)
    silent = [connect() for _ in range(60)]
    for _ in range(4):
        time.sleep(0.3)
        for connection in slow:
            connection.sendall(b"X-More: 1\r\n")
        assert quick(server) < 0.5
    started = time.monotonic()
    for connection in (*slow, *silent):
        assert answer(connection) == b""
    assert time.monotonic() - started < 4


def test_clients_that_do_not_close_hold_up_nobody(server: RunningServer, connect: object) -> None:
    idle = [connect() for _ in range(50)]
    for connection in idle:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
    for connection in idle:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert quick(server) < 0.5


def test_a_connection_is_kept_for_the_next_request(server: RunningServer) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.connect()
        kept = connection.sock
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            assert connection.sock is kept


def test_requests_may_be_sent_ahead(connect: object) -> None:
    connection = connect()
    connection.sendall(post(COMPLETION) + HEAD + b"\r\n" + post(COMPLETION))
    assert answer(connection).count(b"HTTP/1.1 200") == 3


def test_a_head_that_is_begun_ahead_holds_no_thread(server: RunningServer, connect: object) -> None:
    ahead = [connect() for _ in range(40)]
    for connection in ahead:
        connection.sendall(HEAD + b"\r\n" + HEAD)
    for connection in ahead:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert quick(server) < 0.5


def test_a_request_may_come_byte_by_byte(connect: object) -> None:
    connection = connect()
    for byte in post(COMPLETION):
        connection.sendall(bytes([byte]))
    assert b"HTTP/1.1 200" in answer(connection)


def test_a_client_may_wait_to_be_told_to_go_on(connect: object) -> None:
    connection = connect()
    request = post(COMPLETION, head=b"Expect: 100-continue\r\n")
    connection.sendall(request[: -len(COMPLETION)])
    assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    connection.sendall(COMPLETION)
    assert b"HTTP/1.1 200" in answer(connection)


@pytest.mark.parametrize("size", [500, 20000])
def test_a_body_over_the_limit_is_413_with_a_length_and_in_chunks(connect: object, size: int) -> None:
    body = json.dumps({"prompt": "x" * 12000}).encode()
    for request in (post(body), chunked(body, size)):
        connection = connect()
        connection.sendall(request)
        head, _, text = answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413"), head
        assert json.loads(text)["error"]["code"] == "request_too_large"


def test_a_body_at_the_limit_is_read_whole(connect: object) -> None:
    body = json.dumps({"prompt": [5], "max_tokens": 1, "user": "x" * 9000}).encode()
    body += b" " * (10000 - len(body))
    for request in (post(body), chunked(body, 777)):
        connection = connect()
        connection.sendall(request)
        assert answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header : 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200000, 431),
        (b"GET /" + b"y" * 70000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    ],
    ids=["request line", "header", "two lengths", "long header", "endless header", "long URL"],
)
def test_a_malformed_head_is_answered_in_the_shape_of_all_errors(
    connect: object, request_bytes: bytes, status: int
) -> None:
    connection = connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(request_bytes)
    head, _, text = answer(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), head
    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{32}\r\n", head)


def test_clients_that_stall_or_trickle_in_a_body_are_ended_and_told(
    server: RunningServer, connect: object
) -> None:
    stalled = [connect() for _ in range(8)]
    trickling = [connect() for _ in range(8)]
    for connection in (*stalled, *trickling):
        connection.sendall(post(COMPLETION)[:-15])
    for _ in range(4):
        time.sleep(0.5)
        for connection in trickling:
            connection.sendall(b" ")
    for connection in (*stalled, *trickling):
        head, _, text = answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408"), head
        assert json.loads(text)["error"]["code"] == "request_timeout"
    assert quick(server) < 0.5


def test_bodies_that_do_not_come_hold_no_thread(server: RunningServer, connect: object) -> None:
    chunked_head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    idle = [connect() for _ in range(150)]
    for number, connection in enumerate(idle):
        connection.sendall(
            [
                post(COMPLETION)[:-15],
                chunked_head + b"40\r\nxxx",
                chunked_head,
            ][number % 3]
        )
    started = time.monotonic()
    assert server.complete(prompt="the", max_tokens=2).status_code == 200
    assert time.monotonic() - started < 1
    for connection in idle:
        head, _, text = answer(connection, 5).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408"), head
        assert json.loads(text)["error"]["code"] == "request_timeout"
    assert quick(server) < 0.5


def test_what_the_head_decides_is_answered_without_the_body(server: RunningServer, connect: object) -> None:
    for head, status in (
        (post(b"x" * 10001), 413),
        (post(b"x" * 50, path=b"/nothing"), 404),
        (post(b"x" * 50, path=b"/v1/models"), 405),
    ):
        started = time.monotonic()
        # More than there are request threads.
        waiting = [connect() for _ in range(30)]
        for number, connection in enumerate(waiting):
            expecting = head.replace(b"Host", b"Expect: 100-continue\r\nHost") if number % 2 else head
            connection.sendall(expecting[: head.index(b"\r\n\r\n") + 30])
        for connection in waiting:
            # To its end: the body was not read, so that the connection cannot go on.
            assert answer(connection, 5).startswith(b"HTTP/1.1 %d " % status)
        assert quick(server) < 0.5
        assert time.monotonic() - started < 1.9, "it took the body's time"


def test_a_chunk_that_is_too_large_is_refused_by_its_size(connect: object) -> None:
    connection = connect()
    connection.sendall(post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"2711\r\n")
    started = time.monotonic()
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 1


def test_a_body_that_trickles_in_time_is_accepted(connect: object) -> None:
    connection = connect()
    request = chunked(COMPLETION, 7)
    connection.sendall(request[:-60])
    for byte in request[-60:]:
        time.sleep(0.02)
        connection.sendall(bytes([byte]))
    assert answer(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_reads_leaves_the_connection_in_order(connect: object) -> None:
    connection = connect()
    unread = post(b"x" * 9000, path=b"/health").replace(b"POST", b"GET")
    connection.sendall(unread + post(b"x" * 9000, path=b"/nothing") + unread + HEAD + b"\r\n")
    answers = answer(connection)
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answers)] == [200, 404, 200, 200]


def test_a_client_that_closes_its_side_is_answered(connect: object) -> None:
    tokenize = b'{"prompt": "the cat"}'
    for request, status in (
        (post(tokenize, path=b"/tokenize"), 200),
        (post(tokenize, path=b"/tokenize")[:-3], 400),
        (chunked(COMPLETION, 7)[:-3], 400),
    ):
        connection = connect()
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        head, _, text = answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        assert (status == 200) == ("tokens" in json.loads(text))


def test_refusals_of_heads_are_counted_and_carry_the_clients_id(
    server: RunningServer, connect: object
) -> None:
    def refused() -> float:
        """One of them was refused before, so that there is a series."""
        return Scrape.of(server).value("http_requests_total", method="other", route="other", status="4xx")

    def send(request: bytes) -> bytes:
        connection = connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        return answer(connection)

    send(b"NONSENSE\r\n\r\n")
    before = refused()
    start = b"GET / HTTP/1.1\r\nX-Request-Id: mine-7\r\n"
    for rest in (b"Bad Header : 1\r\n\r\n", b"X: " + b"y" * 70000):
        assert b"\r\nx-request-id: mine-7\r\n" in send(start + rest)
    deadline = time.monotonic() + 5
    while refused() < before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert refused() == before + 2


def test_a_head_that_breaks_the_environ_harms_nobody(server: RunningServer, connect: object) -> None:
    worker = server.processes()[1].pid
    connection = connect()
    # Trusted of a proxy on this machine, and then not what the path begins with.
    connection.sendall(post(COMPLETION, head=b"SCRIPT_NAME: /other\r\n")[:-5])
    assert answer(connection).startswith(b"HTTP/1.1 500 ")
    assert quick(server) < 0.5
    assert server.processes()[1].pid == worker


@pytest.mark.parametrize("body", [b"zz\r\n\r\n", b"5\r\nabcdeXX", b"5;=\r\nabcde\r\n0\r\n\r\n"])
def test_malformed_chunks_are_400(connect: object, body: bytes) -> None:
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    )
    head, _, text = answer(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400"), head
    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}


def test_a_long_head_and_a_reset_harm_nobody(server: RunningServer, connect: object) -> None:
    worker = server.processes()[1].pid
    for _ in range(10):
        connection = connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 70000)
        connection.close()
    assert quick(server) < 0.5
    assert server.processes()[1].pid == worker


def test_clients_that_break_off_in_a_body_free_their_threads(server: RunningServer, connect: object) -> None:
    for _ in range(30):
        connection = connect()
        connection.sendall(post(COMPLETION)[:-5])
        connection.close()
    assert quick(server) < 0.5

"""Clients that send slowly, or nothing, or far too much: what they may take of a server is bounded."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ..running_server import RunningServer, running_server

MIB = 2**20

CONNECTIONS = 220


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Bodies of up to 2 MiB, of which 16 MiB are held together."""
    log = tmp_path_factory.mktemp("slow-clients") / "log"
    with running_server(
        log,
        MODEL=str(tiny_path),
        ENGINE_SLOTS="2",
        SERVER_QUEUE_LIMIT="8",
        SERVER_CONNECTION_LIMIT=str(CONNECTIONS),
        SERVER_HEAD_TIMEOUT="2",
        SERVER_BODY_TIMEOUT="20",
        SERVER_MAX_BODY=str(2 * MIB),
        SERVER_BODY_MEMORY=str(16 * MIB),
    ) as server:
        yield server.wait_ready()


@contextlib.contextmanager
def connections(server: RunningServer, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            for _ in range(count)
        ]


def worker_of(server: RunningServer) -> psutil.Process:
    return server.processes()[1]


def status(connection: socket.socket) -> int | None:
    """The status of an answer that is there; None if there is none yet."""
    connection.setblocking(False)
    try:
        return int(connection.recv(65536).split()[1])
    except BlockingIOError:
        return None


def push(senders: dict[socket.socket, int], seconds: float) -> None:
    """Send so many bytes on each connection, as they are taken; who was answered stops."""
    deadline = time.monotonic() + seconds
    piece = b"x" * 65536
    while senders:
        assert time.monotonic() < deadline, "the server takes no more, and refuses nobody"
        for connection, left in list(senders.items()):
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                senders[connection] -= connection.send(piece[:left])
            if senders[connection] == 0:
                del senders[connection]
        time.sleep(0.001)


def test_the_memory_of_bodies_is_bounded_and_those_that_stall_make_room(server: RunningServer) -> None:
    worker = worker_of(server)
    before = worker.memory_info().rss
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (2 * MIB)
    with connections(server, 200) as stalled:
        for connection in stalled:
            connection.sendall(head)
        push(dict.fromkeys(stalled, MIB), 60)
        started = time.monotonic()
        # Itself too large to come in one piece.
        refused = server.complete(prompt="x" * 300_000, max_tokens=1)
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert server.complete(prompt="x", max_tokens=1).status_code == 200
        assert time.monotonic() - started < 2
        # Without the limit it were 200 MiB more.
        assert worker.memory_info().rss - before < 100 * MIB
        deadline = time.monotonic() + 15
        answers = dict.fromkeys(stalled)
        while list(answers.values()).count(None) > 17 and time.monotonic() < deadline:
            answers |= {each: status(each) for each, answer in answers.items() if answer is None}
            time.sleep(0.05)
        assert worker.memory_info().rss - before < 100 * MIB
    # Those that were last: 16 MiB of them, and perhaps one of which less was seen.
    assert 8 <= list(answers.values()).count(None) <= 17
    assert set(answers.values()) == {429, None}
    assert server.complete(prompt="x", max_tokens=1).status_code == 200
    assert worker_of(server).pid == worker.pid


def test_connections_that_say_nothing_give_way_within_their_deadline(server: RunningServer) -> None:
    with connections(server, CONNECTIONS + 20):
        started = time.monotonic()
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
        # Not before the deadline, or there was no limit.
        assert 1 < time.monotonic() - started < 6
    assert server.complete(prompt="x", max_tokens=1).status_code == 200


def test_a_body_that_has_not_come_does_not_hold_up_the_end(tiny_path: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path / "log", MODEL=str(tiny_path), ENGINE_SLOTS="2", SERVER_BODY_TIMEOUT="60"
    ) as server:
        server.wait_ready()
        with connections(server, 30) as waiting:
            for connection in waiting:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            assert server.complete(prompt="x", max_tokens=1).status_code == 200
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            for connection in waiting:
                data = b""
                while piece := connection.recv(65536):
                    data += piece
                head, _, text = data.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 503 "), head
                assert json.loads(text)["error"]["code"] == "shutting_down"
            assert server.process.wait(10) == 0
            assert time.monotonic() - started < 8

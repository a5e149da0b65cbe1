from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from basaran_ops.server import disconnects
from basaran_ops.server.disconnects import DepartureMonitor, EpollHangUps, KqueueHangUps


@pytest.fixture
def monitor() -> Iterator[DepartureMonitor]:
    monitor = DepartureMonitor()
    yield monitor
    monitor.close()
    monitor.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """A TCP connection: (server's end, client's end)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        return server, client


def test_a_client_that_leaves_is_noticed_within_milliseconds(monitor: DepartureMonitor) -> None:
    server, client = pair()
    left = threading.Event()
    undo = monitor.watch(server, left.set)
    started = time.monotonic()
    client.close()
    assert left.wait(1)
    assert time.monotonic() - started < 0.05
    undo()
    undo()
    server.close()


def test_a_client_that_left_before_is_noticed_too(monitor: DepartureMonitor) -> None:
    server, client = pair()
    client.close()
    time.sleep(0.05)
    left = threading.Event()
    monitor.watch(server, left.set)
    assert left.wait(1)
    server.close()


def test_a_client_that_sends_more_has_not_left(monitor: DepartureMonitor) -> None:
    server, client = pair()
    left = threading.Event()
    undo = monitor.watch(server, left.set)
    client.sendall(b"GET / HTTP/1.1\r\n")
    assert not left.wait(0.1)
    undo()
    server.close()
    client.close()


def test_after_the_undo_nobody_is_called(monitor: DepartureMonitor) -> None:
    server, client = pair()
    left = threading.Event()
    monitor.watch(server, left.set)()
    client.close()
    assert not left.wait(0.1)
    server.close()
    assert repr(monitor) == "<DepartureMonitor watching=0>"


def test_hundreds_may_leave_at_once(monitor: DepartureMonitor) -> None:
    pairs = [pair() for _ in range(300)]
    left: list[int] = []
    for number, (server, _) in enumerate(pairs):
        monitor.watch(server, lambda number=number: left.append(number))
    for _, client in pairs:
        client.close()
    deadline = time.monotonic() + 2
    while len(left) < 300 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(left) == list(range(300))
    for server, _ in pairs:
        server.close()


def test_a_departure_is_not_taken_for_that_of_the_next_on_the_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the kernel's word and the monitor's own the connection ends, and another takes its number."""
    seen, go = threading.Event(), threading.Event()

    class Slow(EpollHangUps):
        def poll(self) -> list[int]:
            found = super().poll()
            seen.set()
            assert go.wait(5)
            return found

    monkeypatch.setattr(disconnects, "hang_ups", Slow)
    monitor = DepartureMonitor()
    first, leaver = pair()
    undo = monitor.watch(first, lambda: None)
    leaver.close()
    assert seen.wait(5)
    undo()
    second, stayer = pair()
    os.dup2(second.fileno(), first.fileno())
    second.close()
    left = threading.Event()
    monitor.watch(first, left.set)
    go.set()
    assert not left.wait(0.2), "the one who stays was taken for the one who left"
    stayer.close()
    assert left.wait(1)
    monitor.close()
    first.close()


def test_a_request_may_end_after_the_monitor(monitor: DepartureMonitor) -> None:
    server, client = pair()
    undo = monitor.watch(server, pytest.fail)
    monitor.close()
    undo()
    monitor.watch(server, pytest.fail)()
    server.close()
    client.close()


def test_without_a_socket_nothing_is_watched(monitor: DepartureMonitor) -> None:
    monitor.watch(None, pytest.fail)()


class FakeSelect:
    """The part of `select` that a system with kqueue has; events are as given."""

    KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_CLEAR, KQ_EV_EOF, KQ_FILTER_READ = 1, 2, 32, 32768, -1

    def __init__(self) -> None:
        self.changes: list[SimpleNamespace] = []
        self.events: list[SimpleNamespace] = []

    def kqueue(self) -> FakeSelect:
        return self

    def kevent(self, ident: int, filter: int, flags: int) -> SimpleNamespace:  # noqa: A002
        return SimpleNamespace(ident=ident, filter=filter, flags=flags)

    def control(
        self, changes: list[SimpleNamespace] | None, count: int, timeout: float | None = 0
    ) -> list[SimpleNamespace]:
        self.changes += changes or []
        return self.events if count else []


def test_without_epoll_kqueues_end_of_stream_is_a_departure() -> None:
    system = FakeSelect()
    poll = KqueueHangUps(3, system)
    poll.register(7)
    poll.register(8)
    poll.unregister(8)
    assert [(change.ident, change.flags) for change in system.changes] == [(3, 1), (7, 33), (8, 33), (8, 2)]
    system.events = [system.kevent(7, -1, FakeSelect.KQ_EV_EOF), system.kevent(9, -1, 0)]
    assert poll.poll() == [7], "one that sends more has not left"
    system.events = [system.kevent(3, -1, 0)]
    assert poll.poll() == [3]

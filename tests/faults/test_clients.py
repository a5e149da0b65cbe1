"""Clients that stall, leave without a word, close half, and ask for what they never read."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from ..running_server import RunningServer
from .belongings import Belongings, processes_of
from .clients import connections, eventually, request_bytes, reset
from .table import Table
from .watch import LONG, SHORT, fault

MIB = 2**20

READ_NOTHING = 4096
"""What the kernel takes in for a client: the least it allows."""

BUSY = SHORT | {"max_tokens": 400}

WIDE = {"prompt": "the " * 70_000, "max_tokens": 20_000, "ignore_eos": True, "echo": True, "n": 16}
"""An answer that begins with more than fits between two sockets, and goes on for long."""


def is_over(connection: socket.socket) -> bool:
    """Whether the server has ended the connection; what it sent is taken."""
    connection.setblocking(False)
    try:
        while connection.recv(MIB):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
def test_who_does_not_read_is_cut_off_in_time_and_loses_its_slots(
    counting_server: RunningServer, table: Table, streamed: bool
) -> None:
    name = f"client reads nothing of a {'stream' if streamed else 'plain answer'}"
    body = WIDE | {"stream": streamed} | ({} if streamed else {"max_tokens": 3})
    before = Belongings.of(counting_server)
    with fault(counting_server, table, name, in_flight=2, body=BUSY) as happening:
        happening.others = 1
        with connections(counting_server, 1, receive=READ_NOTHING) as (client,):
            client.sendall(request_bytes(body))
            counting_server.wait_for(lambda health: health["outstanding"] >= 16)
            # Its client still holds on, and has been given two seconds.
            eventually(lambda: not any(Belongings.of(counting_server).leaked_since(before).values()), 8)
            print(f"cut off after {time.monotonic() - happening.started:.1f} s")
    assert [ending.how for ending in happening.endings] == ["complete"] * 2


def test_resets_in_every_phase_leave_nothing(real_server: RunningServer, table: Table) -> None:
    request = request_bytes(LONG | {"stream": True})
    body = request.index(b"\r\n\r\n") + 4
    phases = {"connected": 0, "in the head": 20, "in the body": body + 5, "running or waiting": len(request)}
    with fault(real_server, table, f"reset when {', '.join(phases)}", in_flight=2, body=BUSY) as happening:
        happening.others = 0
        for sent in phases.values():
            with connections(real_server, 12) as clients:
                for client in clients:
                    client.sendall(request[:sent])
                if sent == len(request):
                    real_server.wait_for(lambda health: health["outstanding"] >= 12)
                    happening.others = 12
                for client in clients:
                    reset(client)
        happening.times = 12 * len(phases)
    assert [ending.how for ending in happening.endings] == ["complete"] * 2


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
def test_who_closes_its_side_of_a_generation_has_left(
    real_server: RunningServer, table: Table, streamed: bool
) -> None:
    name = f"half-close in a {'stream' if streamed else 'plain answer'}"
    with fault(real_server, table, name, in_flight=2, body=BUSY) as happening:
        with connections(real_server, 6) as clients:
            for client in clients:
                client.sendall(request_bytes(LONG | {"stream": streamed}))
            real_server.wait_for(lambda health: health["outstanding"] >= 6)
            for client in clients:
                client.shutdown(socket.SHUT_WR)
            for client in clients:
                eventually(lambda client=client: is_over(client), 3)
        happening.times = happening.others = 6
    assert [ending.how for ending in happening.endings] == ["complete"] * 2


def test_ten_thousand_requests_that_nobody_reads_hold_up_nobody(
    real_server: RunningServer, table: Table
) -> None:
    worker, before = processes_of(real_server)[1], Belongings.of(real_server)
    memory = worker.memory_info().rss
    unread = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    with fault(real_server, table, "10,000 requests, no answer read", in_flight=2, body=BUSY) as happening:
        happening.times = 10_000
        with connections(real_server, 50, receive=READ_NOTHING) as clients:
            senders = [threading.Thread(target=send_all, args=(client, unread)) for client in clients]
            for sender in senders:
                sender.start()
            # Until all are answered, or cut off for not reading, while their clients still hold on.
            while Belongings.of(real_server).descriptors > before.descriptors:
                assert happening.ask(SHORT).seconds < 1.5
                assert time.monotonic() - happening.started < 20
                time.sleep(0.05)
            for sender in senders:
                sender.join()
            grown = worker.memory_info().rss - memory
        print(f"longest wait {max(e.seconds for e in happening.endings):.2f} s, {grown / MIB:.1f} MiB more")
    assert grown < 30 * MIB
    assert {ending.how for ending in happening.endings} == {"complete"}


def send_all(client: socket.socket, data: bytes) -> None:
    """Unless the server has enough of it."""
    with contextlib.suppress(OSError):
        client.sendall(data)


def test_a_hundred_bad_clients_of_all_kinds_at_once_hold_up_nobody(
    real_server: RunningServer, table: Table
) -> None:
    request = request_bytes(LONG | {"stream": True})
    with fault(real_server, table, "100 bad clients of all kinds", in_flight=2, body=BUSY) as happening:
        happening.others, happening.times = None, 100
        with connections(real_server, 100, receive=READ_NOTHING) as clients:
            silent, heads, bodies, readers, halves = (clients[kind::5] for kind in range(5))
            for client in bodies:
                client.sendall(request[:-30])
            # One reader: two requests run, and who is asked for meanwhile shall not wait for a slot.
            for client in (readers[0], *halves[:5]):
                client.sendall(request)
            for client in halves:
                client.shutdown(socket.SHUT_WR)
            for byte in range(12):
                for client in heads:
                    client.sendall(request[byte : byte + 1])
                for client in bodies:
                    client.sendall(b" ")
                assert happening.ask(SHORT).seconds < 1.5
                time.sleep(0.05)
            for client in silent[:10]:
                reset(client)
        print(f"longest wait {max(e.seconds for e in happening.endings):.2f} s")
    assert {ending.how for ending in happening.endings} == {"complete"}

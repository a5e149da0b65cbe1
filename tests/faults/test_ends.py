"""Signals in every phase, and processes killed from outside: all is gone in seconds, or serves again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from ..running_server import RunningServer, running_server
from .belongings import engines_of, processes_of
from .clients import connections, eventually, request_bytes
from .conftest import SMALL
from .table import Table
from .watch import LONG, SHORT, fault, the_end

ENDLESS = LONG | {"max_tokens": 90_000}


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5, 0.9, 1.3])
def test_sigterm_before_anything_is_loaded_leaves_nothing(
    counting_settings: dict[str, str], tmp_path: Path, table: Table, seconds: float
) -> None:
    with running_server(tmp_path / "log", **counting_settings) as server:
        time.sleep(seconds)
        with the_end(server, table, f"SIGTERM {seconds} s after the start", in_flight=0):
            server.process.send_signal(signal.SIGTERM)


def sigterm(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGTERM)


def sigterm_twice(server: RunningServer) -> None:
    sigterm(server)
    time.sleep(0.3)
    sigterm(server)


def sigterm_after_drain(server: RunningServer) -> None:
    httpx.get(f"{server.management_url}/drain", timeout=5)
    sigterm(server)


def sigterm_while_replaced(server: RunningServer) -> None:
    os.kill(engines_of(server)[0], signal.SIGKILL)
    eventually(lambda: httpx.get(f"{server.management_url}/readyz").status_code == 503)
    sigterm(server)


def control_c(server: RunningServer) -> None:
    """As a terminal does it: to the arbiter and the worker. Engines have sessions of their own."""
    for process in server.processes()[:2]:
        process.send_signal(signal.SIGINT)


def control_c_on_and_on(server: RunningServer) -> None:
    """The arbiter, told to end as well, tells the worker again, which then waits for an engine that hangs."""
    worker = server.processes()[1]
    os.kill(engines_of(server)[0], signal.SIGSTOP)
    control_c(server)
    for _ in range(4):
        time.sleep(0.11)  # gunicorn waits for 0.1 s before the end
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGQUIT)


def sigint_while_draining(server: RunningServer) -> None:
    sigterm(server)
    time.sleep(0.3)
    control_c(server)


HAPPY = SHORT | {"max_tokens": 300}

ENDS: list[tuple[str, Callable[[RunningServer], None], dict[str, object], set[str | None]]] = [
    ("SIGTERM in mid-stream", sigterm, HAPPY, set()),
    ("SIGTERM in streams without end", sigterm, ENDLESS, {"shutting_down"}),
    ("SIGTERM twice", sigterm_twice, ENDLESS, {"shutting_down"}),
    ("SIGTERM while draining", sigterm_after_drain, HAPPY, set()),
    ("SIGTERM while an engine is replaced", sigterm_while_replaced, ENDLESS, {"engine_failed"}),
    ("SIGINT in mid-stream", control_c, ENDLESS, {"shutting_down"}),
    ("SIGINT and SIGQUIT with an engine that hangs", control_c_on_and_on, ENDLESS, {"shutting_down"}),
    ("SIGINT while draining", sigint_while_draining, ENDLESS, {"shutting_down"}),
]


@pytest.mark.parametrize(("name", "end", "body", "codes"), ENDS, ids=[end[0] for end in ENDS])
def test_whoever_is_served_when_the_server_is_told_to_end_is_told_and_nothing_stays(
    counting_settings: dict[str, str],
    tmp_path: Path,
    table: Table,
    name: str,
    end: Callable[[RunningServer], None],
    body: dict[str, object],
    codes: set[str | None],
) -> None:
    with running_server(tmp_path / "log", **counting_settings) as server:
        server.wait_ready()
        with the_end(server, table, name, body=body) as happening:
            end(server)
    assert server.process.returncode == 0
    assert happening.codes() == codes
    assert all(ending.how == ("error" if codes else "complete") for ending in happening.endings)


def test_sigterm_while_idle_waits_for_no_connection(
    counting_settings: dict[str, str], tmp_path: Path, table: Table
) -> None:
    with running_server(tmp_path / "log", **counting_settings) as server:
        server.wait_ready()
        with connections(server, 20) as clients:
            for client in clients[:10]:
                client.sendall(request_bytes(SHORT))
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
            for client in clients[10:]:
                client.sendall(b"GET / HT")
            with the_end(server, table, "SIGTERM while idle, 20 connections kept", in_flight=0, seconds=4):
                sigterm(server)
        assert server.process.returncode == 0


def test_an_arbiter_killed_takes_everything_with_it(
    counting_settings: dict[str, str], tmp_path: Path, table: Table
) -> None:
    with running_server(tmp_path / "log", **counting_settings) as server:
        server.wait_ready()
        with the_end(server, table, "arbiter killed (SIGKILL)", body=ENDLESS, seconds=9) as happening:
            server.process.kill()
    assert happening.codes() == {"shutting_down"}


def test_an_arbiter_killed_while_the_model_loads_takes_everything_with_it(
    roomy_path: Path, tmp_path: Path, table: Table
) -> None:
    with running_server(tmp_path / "log", **SMALL | {"MODEL": str(roomy_path)}) as server:
        # By the log: where all is busy, a model may be loaded before the first answer is there.
        while "importing torch" not in server.log.read_text():
            time.sleep(0.05)
        time.sleep(0.5)
        with the_end(server, table, "arbiter killed while loading", in_flight=0):
            server.process.kill()


def test_a_worker_killed_is_replaced_with_its_engines(counting_server: RunningServer, table: Table) -> None:
    arbiter, *others = processes_of(counting_server)
    name = "HTTP worker killed (SIGKILL)"
    with fault(counting_server, table, name, body=ENDLESS, may_cut=True) as happening:
        counting_server.processes()[1].kill()
    assert {ending.how for ending in happening.endings} == {"cut"}
    now = processes_of(counting_server)
    assert now[0] == arbiter
    assert not {process.pid for process in now[1:]} & {process.pid for process in others}

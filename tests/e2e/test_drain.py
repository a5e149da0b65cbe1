"""The end of a server in the middle of its work: nothing is cut, nobody is left hanging, nothing lives on."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from ..running_server import RunningServer, running_server

STREAMS = 20


@contextmanager
def serving(tiny_path: Path, tmp_path: Path, **settings: str) -> Iterator[RunningServer]:
    small = {"MODEL": str(tiny_path), "ENGINE_SLOTS": "8", "MODEL_DTYPE": "float32"}
    with running_server(tmp_path / "log", **small | settings) as server:
        yield server.wait_ready()


class Streams:
    """Streams that read to their end and keep what they were sent."""

    def __init__(self, server: RunningServer, max_tokens: int, *, all_at_once: bool = True) -> None:
        self.server = server
        self.lines: list[list[str]] = [[] for _ in range(STREAMS)]
        self.failures: list[Exception] = []
        self.threads = [
            threading.Thread(target=self._read, args=(number, max_tokens)) for number in range(STREAMS)
        ]
        for thread in self.threads:
            thread.start()
        if all_at_once:
            server.wait_for(lambda health: health["outstanding"] == STREAMS)

    def _read(self, number: int, max_tokens: int) -> None:
        body = {"prompt": f"story {number}", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        url = f"{self.server.url}/v1/completions"
        try:
            with httpx.stream("POST", url, json=body, timeout=60) as response:
                self.lines[number] += [line for line in response.iter_lines() if line.startswith("data: ")]
        except Exception as error:
            self.failures.append(error)

    def join(self) -> list[str]:
        """How each ended: "length", or the code of the error that came before [DONE]."""
        for thread in self.threads:
            thread.join()
        assert self.failures == [], "a stream was cut"
        ends = []
        for lines in self.lines:
            assert lines[-1] == "data: [DONE]"
            last = json.loads(lines[-2].removeprefix("data: "))
            ends.append(last["error"]["code"] if "error" in last else last["choices"][0]["finish_reason"])
        return ends


def stop(server: RunningServer) -> list[psutil.Process]:
    family = server.processes()
    server.process.send_signal(signal.SIGTERM)
    return family


def refused(server: RunningServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def gone(family: list[psutil.Process]) -> bool:
    return psutil.wait_procs(family, timeout=5)[1] == []


def test_streams_finish_after_sigterm_while_nobody_new_gets_in(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path, SERVER_DRAIN_TIMEOUT="60") as server:
        streams = Streams(server, max_tokens=480)
        family = stop(server)
        started = time.monotonic()
        while not refused(server):
            assert time.monotonic() - started < 2
            time.sleep(0.01)
        print(f"refused after {time.monotonic() - started:.2f} s")
        assert streams.join() == ["length"] * STREAMS
        assert server.process.wait(10) == 0
        assert gone(family)


def test_at_the_deadline_streams_end_with_an_error_event_and_done(tiny_path: Path, tmp_path: Path) -> None:
    # Slow enough: one at a time, token by token, and the rest waits.
    slow = {"ENGINE_SLOTS": "1", "ENGINE_SPECULATE": "false", "ENGINE_CONTEXT_LENGTH": "512"}
    with serving(tiny_path, tmp_path, SERVER_DRAIN_TIMEOUT="2", **slow) as server:
        streams = Streams(server, max_tokens=500)
        family = stop(server)
        started = time.monotonic()
        ends = streams.join()
        assert server.process.wait(10) == 0
        took = time.monotonic() - started
        print(f"ended {ends}, all gone after {took:.1f} s")
        assert set(ends) <= {"length", "shutting_down"}
        assert "shutting_down" in ends
        assert took < 2 + 5
        assert gone(family)


def test_a_second_sigterm_is_a_fast_end_with_last_words(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path, SERVER_DRAIN_TIMEOUT="60") as server:
        streams = Streams(server, max_tokens=500)
        family = stop(server)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        ends = streams.join()
        server.process.wait(10)
        assert time.monotonic() - started < 5
        assert "shutting_down" in ends
        assert gone(family)


def test_draining_by_request_and_then_sigterm_lets_streams_finish(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path, SERVER_DRAIN_TIMEOUT="60") as server:
        streams = Streams(server, max_tokens=480)
        httpx.get(f"{server.management_url}/drain?delay=0.5", timeout=10)
        family = stop(server)
        assert streams.join() == ["length"] * STREAMS
        assert server.process.wait(10) == 0
        assert gone(family)


@pytest.mark.parametrize(("setting", "code"), [("REQUEST", "request_timeout"), ("QUEUE", "queue_timeout")])
def test_a_request_ends_when_its_time_is_over(
    tiny_path: Path, tmp_path: Path, setting: str, code: str
) -> None:
    limits = {f"SERVER_{setting}_TIMEOUT": "1"}
    with serving(tiny_path, tmp_path, ENGINE_SLOTS="1", **limits) as server:
        ends = Streams(server, max_tokens=500, all_at_once=False).join()
        assert code in ends
        assert set(ends) <= {code, "length"}
        server.wait_for(lambda health: health["outstanding"] == 0)

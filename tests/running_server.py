"""A real server in a process of its own, and what tests ask of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

READY_SECONDS = 90.0
EXIT_SECONDS = 20.0


class RunningServer:
    """`python -m basaran_ops` on a free port; its log goes to a file."""

    def __init__(self, log: Path, command: list[str] | None = None, **settings: str) -> None:
        self.port, self.management_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.management_url = f"http://127.0.0.1:{self.management_port}"
        self.log = log
        ports = {"PORT": str(self.port), "MANAGEMENT_PORT": str(self.management_port)}
        # Tiny models' steps are faster on one thread, above all where the cores are busy.
        environ = os.environ | {"HOST": "127.0.0.1", "ENGINE_THREADS": "1"} | ports | settings
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command or [sys.executable, "-m", "basaran_ops"], env=environ, stdout=output, stderr=output
            )
        # Not httpx's default of 5 s: the answers here may be whole completions.
        self.http = httpx.Client(base_url=self.url, timeout=120)

    def wait_ready(self) -> RunningServer:
        self.wait_for(lambda health: health["status"] == "ready", READY_SECONDS)
        return self

    def health(self) -> dict[str, Any]:
        return self.http.get("/health").json()

    def stats(self) -> dict[str, Any]:
        return self.health()["replicas"][0]["stats"]

    def wait_for(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 10) -> dict[str, Any]:
        """Poll /health until it is as wanted; the health then."""
        deadline = time.monotonic() + seconds
        health: object = "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the server exited with {self.process.returncode}:\n{self.log.read_text()}"
                )
            try:
                health = self.health()
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if holds(health):
                return health
            time.sleep(0.01)
        raise AssertionError(f"still {health} after {seconds} s:\n{self.log.read_text()[-4000:]}")

    def processes(self) -> list[psutil.Process]:
        """The arbiter, the worker, the engines."""
        arbiter = psutil.Process(self.process.pid)
        return [arbiter, *arbiter.children(recursive=True)]

    def engine(self) -> psutil.Process:
        return next(p for p in self.processes() if "basaran_ops.engine_process" in p.cmdline())

    def complete(self, **fields: object) -> httpx.Response:
        return self.http.post("/v1/completions", json=fields)

    def terminate(self) -> int:
        """SIGTERM, then wait; the exit status. Fails if any process of the server lives on."""
        family = self.processes()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(EXIT_SECONDS)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, f"left behind: {alive}\n{self.log.read_text()[-4000:]}"
        return status

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.terminate()


@contextmanager
def running_server(log: Path, command: list[str] | None = None, **settings: str) -> Iterator[RunningServer]:
    """A server that may still be loading."""
    server = RunningServer(log, command, **settings)
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port

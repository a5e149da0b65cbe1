"""A server started for a benchmark, and what the processes behind a port use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil

SAMPLE_SECONDS = 1.0


@contextmanager
def serve(port: int, environ: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """A server, as its URL and the seconds from exec to ready. Raises RuntimeError if it ends before that."""
    own = {"HOST": "127.0.0.1", "PORT": str(port), "MANAGEMENT_PORT": str(port + 1)}
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "log").open("w+b") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "basaran_ops"],
            env={**os.environ, **own, **environ},
            stdout=log,
            stderr=log,
        )
        try:
            while not is_ready(port + 1):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read().decode(errors="replace"))
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


def is_ready(management_port: int) -> bool:
    """Whether the server behind this port takes requests."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{management_port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


class Usage:
    """CPU seconds and peak memory of the processes behind a local URL, while the block runs.

    Memory is the sum of proportional set sizes: pages that processes share count once.
    """

    def __init__(self, url: str) -> None:
        self._processes = _behind(url)
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self.cpu_seconds = 0.0
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._before = self._cpu()
        self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._sampler.join()
        self.cpu_seconds = self._cpu() - self._before

    def _cpu(self) -> float:
        total = 0.0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(_pss(process) for process in self._processes))
            if self._done.wait(SAMPLE_SECONDS):
                return


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def _behind(url: str) -> list[psutil.Process]:
    """Who listens on the URL's port on this machine, and all processes below."""
    port = urlsplit(url).port
    listening = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }
    found: dict[int, psutil.Process] = {}
    for pid in listening:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            found[one.pid] = one
    return list(found.values())

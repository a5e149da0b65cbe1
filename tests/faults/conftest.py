"""Servers to be hurt, and the table of what came of it."""

from __future__ import annotations

import gc
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ..leaks import GRACE_SECONDS, Holdings
from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny
from .shim_settings import COUNTING, FAULTY
from .table import Table


def own_holdings() -> Holdings:
    """Of this process. Servers' own processes come and go here; each test counts those itself."""
    return replace(Holdings.now(), children=frozenset(child.pid for child in psutil.Process().children()))


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a server or a descriptor behind."""
    before = own_holdings()
    yield
    until = time.monotonic() + GRACE_SECONDS
    while (leaks := own_holdings().leaked_since(before)) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.05)
    assert not leaks, f"left behind: {leaks}"


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    made = Table([])
    yield made
    print(f"\n{made}")


@pytest.fixture(scope="session")
def roomy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for texts that take seconds."""
    return save_tiny(tmp_path_factory.mktemp("roomy") / "model", eos=None, max_position_embeddings=8192)


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "offset")


class Clock:
    """The wall clock of the servers that follow its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0.0)

    def set(self, seconds: float) -> None:
        """Let it be off by so many seconds from now on."""
        if not self.path.exists():
            self.path.write_bytes(bytes(8))
        # In place: the file is mapped into the servers' memory.
        with self.path.open("r+b") as file:
            file.write(struct.pack("d", seconds))


SMALL = {
    "MODEL_DTYPE": "float32",
    "ENGINE_SLOTS": "4",
    "SERVER_QUEUE_LIMIT": "12",
    "ENGINE_STALL_TIMEOUT": "2",
    "SERVER_HEAD_TIMEOUT": "2",
    "SERVER_BODY_TIMEOUT": "2",
    "SERVER_CHANNEL_TIMEOUT": "2",
    "SERVER_DRAIN_TIMEOUT": "3",
    "SERVER_REQUEST_TIMEOUT": "15",
    "SERVER_QUEUE_TIMEOUT": "10",
    "LOG_FORMAT": "json",
}


@pytest.fixture(scope="session")
def real_server(
    roomy_path: Path, clock: Clock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A tiny model in a real engine."""
    log = tmp_path_factory.mktemp("real") / "log"
    settings = SMALL | FAULTY | {"MODEL": str(roomy_path), "FAULTS_CLOCK": str(clock.path)}
    with running_server(log, **settings) as server:
        yield server.wait_ready()


@pytest.fixture(scope="session")
def counting_settings(roomy_path: Path) -> dict[str, str]:
    """Of a server whose engine counts, and is replaced in less than a second."""
    return SMALL | COUNTING | {"MODEL": str(roomy_path)}


@pytest.fixture(scope="session")
def counting_server(
    counting_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("counting") / "log", **counting_settings) as server:
        yield server.wait_ready()

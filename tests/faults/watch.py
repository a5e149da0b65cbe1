"""A fault in the middle of work: what its clients get, what is left behind, when the server serves again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from ..running_server import RunningServer
from .belongings import Belongings, leaks, processes_of, told_ends
from .clients import Crowd, Ending, ask, eventually, serve_again
from .table import Row, Table

SHORT: dict[str, Any] = {"prompt": [5], "max_tokens": 3, "ignore_eos": True}
LONG: dict[str, Any] = {"prompt": [5], "max_tokens": 3000, "ignore_eos": True}


@dataclass(slots=True)
class Happening:
    """What was done, and what came of it."""

    server: RunningServer
    times: int = 1
    """How often the fault was injected."""
    endings: list[Ending] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    others: int | None = 0
    """Requests of clients that do not tell how they ended; None where nobody knows how many were one."""

    def ask(self, body: Mapping[str, Any]) -> Ending:
        """Ask within the fault; the answer counts with those in flight."""
        self.endings.append(ask(self.server.port, body))
        return self.endings[-1]

    def codes(self) -> set[str | None]:
        """Of all errors."""
        return {ending.code for ending in self.endings if ending.how == "error"}

    def row(self, name: str, found: Mapping[str, int], then: str) -> Row:
        counts = {
            how: sum(e.how == how for e in self.endings) for how in ("complete", "error", "cut", "hung")
        }
        return Row(name, self.times, len(self.endings), *counts.values(), **found, then=then)


@contextmanager
def fault(
    server: RunningServer,
    table: Table,
    name: str,
    *,
    in_flight: int = 6,
    body: Mapping[str, Any] = LONG,
    may_cut: bool = False,
) -> Iterator[Happening]:
    """Within the block a fault is injected while so many requests run, half of them streams.

    Afterwards: none of them hangs, each ended exactly once by the server's own count, nothing is left behind,
    and a request is served. `may_cut`: the process that counts, and that holds the connections, is gone.
    """
    eventually(lambda: server.health()["outstanding"] == 0)
    before, counted = Belongings.of(server), told_ends(server)
    happening = Happening(server)
    crowd = Crowd(server.port, in_flight, body)
    if in_flight:
        server.wait_for(lambda health: health["outstanding"] == in_flight)
    happening.started = time.monotonic()
    yield happening
    attempts = serve_again(server.port, SHORT)
    then = f"served after {time.monotonic() - happening.started:.2f} s"
    happening.endings += crowd.join()
    found = leaks(server, before)
    row = happening.row(name, found, then)
    table.rows.append(row)
    print(row)
    assert row.hung == 0, happening.endings
    assert may_cut or row.cut == 0, happening.endings
    assert not any(found.values()), found
    if not may_cut and happening.others is not None:
        asked = len(happening.endings) + attempts + happening.others
        eventually(lambda: told_ends(server) - counted == asked, 3)


@contextmanager
def the_end(
    server: RunningServer,
    table: Table,
    name: str,
    *,
    in_flight: int = 6,
    body: Mapping[str, Any] = SHORT | {"max_tokens": 300},
    seconds: float = 6.0,
    may_cut: bool = False,
) -> Iterator[Happening]:
    """Within the block a server that serves so many requests is told to end, or made to.

    Within `seconds` of its beginning every process of the server is gone, and each request has ended.
    """
    happening = Happening(server)
    crowd = Crowd(server.port, in_flight, body)
    if in_flight:
        server.wait_for(lambda health: health["outstanding"] == in_flight)
    family = processes_of(server)
    # An idle connection may still ask, and is waited for, for two seconds.
    server.http.close()
    happening.started = time.monotonic()
    yield happening
    server.process.wait(seconds)
    psutil.wait_procs(family, timeout=seconds)
    took = time.monotonic() - happening.started
    happening.endings += crowd.join()
    left = {"slots": 0, "processes": len(processes_of(server)), "descriptors": 0}
    row = happening.row(name, left, f"gone after {took:.2f} s")
    table.rows.append(row)
    print(row)
    assert row.hung == 0, happening.endings
    assert may_cut or row.cut == 0, happening.endings
    assert row.processes == 0
    assert took < seconds

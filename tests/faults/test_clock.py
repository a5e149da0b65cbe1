"""A wall clock that jumps: no deadline is told by it."""

from __future__ import annotations

import time

import httpx

from ..running_server import RunningServer
from .belongings import engines_of
from .conftest import Clock
from .table import Table
from .watch import SHORT, fault

DAY = 86400.0


def test_a_clock_that_jumps_ends_nothing_and_starts_nothing(
    real_server: RunningServer, clock: Clock, table: Table
) -> None:
    def uptime() -> float:
        state = httpx.get(f"{real_server.management_url}/state").json()
        return float(state["uptime_seconds"])

    name = "clock jumps by a day, a month, ten years"
    engines, worker = engines_of(real_server), real_server.processes()[1].pid
    try:
        with fault(real_server, table, name, body=SHORT | {"max_tokens": 1200}) as happening:
            jumps = (DAY, -DAY, 30 * DAY, -30 * DAY, 3650 * DAY)
            happening.times = len(jumps)
            for jump in jumps:
                real = uptime()
                clock.set(jump)
                # Or nothing was tested.
                assert abs(uptime() - real) > DAY / 2
                time.sleep(0.1)
    finally:
        clock.set(0.0)
    assert [ending.how for ending in happening.endings] == ["complete"] * 6
    assert engines_of(real_server) == engines
    assert real_server.processes()[1].pid == worker
    assert httpx.get(f"{real_server.management_url}/livez").status_code == 200

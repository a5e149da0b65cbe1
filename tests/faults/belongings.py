"""What a server holds: work, processes, descriptors. After a bad moment it must be what it was before."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from ..running_server import RunningServer
from ..scrape import Scrape

GRACE_SECONDS = 6.0
"""Closing connections linger for 2 s."""


def processes_of(server: RunningServer) -> list[psutil.Process]:
    """All that live with this server's port in their environment, its orphans included; the oldest first."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get("MANAGEMENT_PORT") == str(server.management_port):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def engines_of(server: RunningServer) -> list[int]:
    """The ids of its engines' processes."""
    found = []
    for process in processes_of(server):
        with suppress(psutil.Error):
            if "basaran_ops.engine_process" in process.cmdline():
                found.append(process.pid)
    return found


@dataclass(frozen=True, slots=True)
class Belongings:
    """Of one server, at one moment."""

    slots: int
    """Sequences that were admitted, or hold a slot, or wait for one."""
    processes: int
    descriptors: int
    """Of all its processes."""

    @classmethod
    def of(cls, server: RunningServer) -> Belongings:
        health = server.health()
        stats = [replica["stats"] for replica in health["replicas"]]
        slots = max(health["outstanding"], sum(each["running"] + each["waiting"] for each in stats))
        processes = processes_of(server)
        descriptors = 0
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                descriptors += process.num_fds()
        return cls(slots, len(processes), descriptors)

    def leaked_since(self, before: Belongings) -> dict[str, int]:
        return {
            "slots": self.slots - before.slots,
            "processes": self.processes - before.processes,
            "descriptors": self.descriptors - before.descriptors,
        }


def leaks(server: RunningServer, before: Belongings) -> dict[str, int]:
    """What is too much, or too little, after a grace time."""
    until = time.monotonic() + GRACE_SECONDS
    while any(found := Belongings.of(server).leaked_since(before).values()) and time.monotonic() < until:
        time.sleep(0.1)
    return Belongings.of(server).leaked_since(before) if any(found) else dict.fromkeys(before.__slots__, 0)


def told_ends(server: RunningServer) -> int:
    """Requests for text that ended or were refused, by the server's own count."""
    scrape = Scrape.of(server)
    return int(scrape.value("requests_total") + scrape.value("requests_rejected_total"))

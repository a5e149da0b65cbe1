"""What a server holds over time, and whether it grows."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from ..running_server import RunningServer
from .belongings import engines_of

MIB = 2**20

SLACK_MIB, SLACK_SHARE = 6.0, 0.03
"""By which memory may be more at the end than in the middle: allocators and histograms settle for a while."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment."""

    second: float
    server_mib: float
    engine_mib: float
    threads: int
    """Of the HTTP process."""
    descriptors: int
    outstanding: int
    restarts: int

    def line(self) -> str:
        return (
            f"| {self.second:.0f} | {self.server_mib:.1f} | {self.engine_mib:.1f} | {self.threads} "
            f"| {self.descriptors} | {self.outstanding} | {self.restarts} |"
        )


HEAD = (
    "| second | server MiB | engine MiB | threads | descriptors | outstanding | restarts |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(slots=True)
class Samples:
    """Of one run; printed as they are taken."""

    server: RunningServer
    worker: psutil.Process
    taken: list[Sample] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def take(self) -> Sample:
        if not self.taken:
            print(HEAD)
        health = self.server.health()
        engine = 0
        for pid in engines_of(self.server):
            with suppress(psutil.NoSuchProcess):
                engine += psutil.Process(pid).memory_info().rss
        sample = Sample(
            time.monotonic() - self.started,
            self.worker.memory_info().rss / MIB,
            engine / MIB,
            self.worker.num_threads(),
            self.worker.num_fds(),
            health["outstanding"],
            sum(replica["restarts"] for replica in health["replicas"]),
        )
        self.taken.append(sample)
        print(sample.line(), flush=True)
        return sample

    def growth(self) -> list[str]:
        """What grows in the second half, in words; nothing where all is flat."""
        half = self.taken[len(self.taken) // 2 :]
        hours = (half[-1].second - half[0].second) / 3600
        own = [sample.server_mib for sample in half]
        slope = statistics.linear_regression([sample.second / 3600 for sample in half], own).slope
        # Engines are replaced: what they come to is compared, not how they get there.
        peaks = [
            max(sample.engine_mib for sample in part)
            for part in (half[: len(half) // 2], half[len(half) // 2 :])
        ]
        print(f"server: median {statistics.median(own):.1f} MiB in the second half, {slope:+.1f} MiB an hour")
        print(f"engine: at most {peaks[0]:.1f} MiB in the third quarter, {peaks[1]:.1f} in the fourth")
        grown = {"server": (slope * hours, statistics.median(own)), "engine": (peaks[1] - peaks[0], peaks[0])}
        return [
            f"the {name}'s memory grows by {more:.1f} MiB"
            for name, (more, level) in grown.items()
            if more > max(SLACK_MIB, SLACK_SHARE * level)
        ]

"""What a test must not leave behind."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass

import psutil

GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Holdings:
    """The threads, child processes and open descriptors of this process."""

    threads: frozenset[str]
    children: frozenset[int]
    descriptors: int

    @classmethod
    def now(cls) -> Holdings:
        process = psutil.Process()
        # tqdm keeps one monitor thread for the life of the process; it is not ours.
        threads = [t for t in threading.enumerate() if "tqdm" not in t.name]
        return cls(
            frozenset(f"{t.name} ({t.ident})" for t in threads),
            frozenset(child.pid for child in process.children(recursive=True)),
            process.num_fds(),
        )

    def leaked_since(self, before: Holdings) -> list[str]:
        leaks = [f"thread {name}" for name in sorted(self.threads - before.threads)]
        leaks += [f"process {pid}" for pid in sorted(self.children - before.children)]
        if self.descriptors > before.descriptors:
            leaks.append(f"{self.descriptors - before.descriptors} descriptors")
        return leaks


def leaks_since(before: Holdings) -> list[str]:
    """What is still there after a grace time."""
    deadline = time.monotonic() + GRACE_SECONDS
    while leaks := Holdings.now().leaked_since(before):
        if time.monotonic() > deadline:
            return leaks
        gc.collect()
        time.sleep(0.05)
    return []

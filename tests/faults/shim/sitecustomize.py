"""Imported by every Python that has this directory in its PYTHONPATH: makes the server's processes faulty.

Nothing of the product knows of it. FAULTS_CLOCK names a file that says how far off the clock is. An engine's
process gets an engine that misbehaves when it is asked to; see `tests.faults.faulty_engine`.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path


def set_clock(path: Path) -> None:
    """Let the file's eight bytes, a double, be how many seconds the wall clock is off, now and later."""
    with path.open("rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time, time.time_ns

    def seconds_off() -> float:
        value: float = struct.unpack("d", offset[:8])[0]
        return value

    time.time = lambda: real[0]() + seconds_off()
    time.time_ns = lambda: real[1]() + int(seconds_off() * 1e9)


if "FAULTS_CLOCK" in os.environ:
    set_clock(Path(os.environ["FAULTS_CLOCK"]))
if "gunicorn" in sys.orig_argv:
    from basaran_ops.pool import replica

    # Each death counts as the first: one server can be hurt many times, and the pauses stay short.
    replica.STEADY_SECONDS = 0.0
if "basaran_ops.engine_process" in sys.orig_argv:
    from tests.faults import faulty_engine

    faulty_engine.install()

"""An engine's process: `python -m basaran_ops.engine_process FD [CORES]`, started by the ProcessTransport.

FD is one end of a socket pair. The first message on it is the Settings, then the engine loop's messages.
CORES, such as 4,5,6,7, is where the process stays. It ends when the other end closes, and takes what it
started with it.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import FrameType
from typing import NoReturn

from .outputs import ModelInfo
from .pool.engine_loop import Inbox, SteppingEngine, run_engine
from .settings import Settings
from .telemetry.logs import adopt_library_loggers, configure_logs

log = logging.getLogger(__name__)

GRACE_SECONDS = 3.0
"""How long the main thread has to unwind, and to remove what is half made, once the server is gone."""


def main() -> None:
    """Serve the engine on the socket that the command line names, until its other end closes."""
    if len(sys.argv) > 2:
        _pin(sys.argv[2])
    connection: Connection = Connection(int(sys.argv[1]))
    settings: Settings = connection.recv()
    configure_logs(settings, process="engine")
    signal.signal(signal.SIGTERM, _exit)
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), name="reader", daemon=True).start()

    def load(progress: Callable[[str], None]) -> tuple[SteppingEngine, ModelInfo]:
        # Imports and models are objects that stay: to look among them for garbage again and again takes as
        # long as a tenth of the start.
        gc.disable()
        progress("importing torch")
        # Not at the top: this takes seconds, in which the server may already want us gone.
        from .checkpoint import resolve
        from .engine.loader import load_engine

        adopt_library_loggers()
        checkpoint = resolve(settings, progress)
        loaded = load_engine(checkpoint, settings, progress)
        # Nor would a step be held up by looking through what is left.
        gc.collect()
        gc.freeze()
        gc.enable()
        return loaded

    try:
        run_engine(load, inbox, connection.send)
    except (SystemExit, BrokenPipeError):
        log.debug("told to end")
    except BaseException:
        log.exception("the engine's process failed")
        _leave(1)
    _leave(0)


def _pin(cores: str) -> None:
    """Stay on these cores. Before torch is imported: threads inherit it, and there are none yet."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def _read(connection: Connection, inbox: Inbox) -> None:
    """Feed the inbox; when the server's end closes, end this process whatever it is doing."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        # The main thread may be inside a long call that signals cannot interrupt.
        threading.Event().wait(GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    # Once: what unwinds now must not be interrupted.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _leave(status: int) -> NoReturn:
    """End without the interpreter's finalization, in which torch takes its time and signals still arrive."""
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()

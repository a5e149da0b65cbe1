"""An engine in a process of its own: for the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue

from ..settings import Settings
from .messages import FromEngine, ToEngine
from .placement import Placement

ENGINE_MODULE = "basaran_ops.engine_process"

STOP_SECONDS = 2.0
"""How long an engine has to end by itself before it is killed. All of a server's end must fit into
gunicorn's patience after the drain, or the worker is killed and a stopped engine is left behind."""


class ProcessTransport:
    """Starts the engine process and talks to it over a socket pair; see Transport.

    Not multiprocessing's spawn: that imports the caller's main module again and leaves a resource tracker
    beside the engine. The process leads a session of its own, so that whatever it starts ends with it, and
    a terminal's Ctrl-C reaches it only through us.
    """

    def __init__(self, settings: Settings, placement: Placement, module: str = ENGINE_MODULE) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *_cores(placement)],
                pass_fds=[theirs.fileno()],
                env=dict(placement.environ),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection: Connection = Connection(ours.detach())
        self._outbox: SimpleQueue[Settings | ToEngine | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()
        if placement.threads is not None:
            settings = settings.model_copy(update={"engine_threads": placement.threads})
        self._outbox.put(settings)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        self._outbox.put(message)

    def receive(self) -> FromEngine:
        try:
            message: FromEngine = self._connection.recv()
        except (EOFError, OSError):
            raise EOFError from None
        return message

    def stop(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._kill_session()

    def kill(self) -> None:
        self._kill_session()

    def close(self) -> str:
        self.stop()
        status = self._process.wait()
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _kill_session(self) -> None:
        """Kill the engine and what it started; nothing if all are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _write(self) -> None:
        # A thread of its own: a stopped engine does not read, and no request may wait for that.
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return


def _cores(placement: Placement) -> list[str]:
    """The argument that names the cores to be pinned to."""
    return [] if placement.cores is None else [",".join(str(core) for core in sorted(placement.cores))]

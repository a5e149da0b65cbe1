"""An engine on a thread of this process: for use as a library."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from .engine_loop import Inbox, Load, run_engine
from .messages import FromEngine, ToEngine


class ThreadTransport:
    """Runs the engine loop on a thread; see Transport."""

    def __init__(self, load: Load) -> None:
        self._inbox: Inbox = SimpleQueue()
        self._outbox: SimpleQueue[FromEngine | None] = SimpleQueue()
        # A daemon: a script that forgets close() must still be able to end.
        self._thread = threading.Thread(target=self._run, args=(load,), name="engine", daemon=True)
        self._thread.start()

    def send(self, message: ToEngine) -> None:
        self._inbox.put(message)

    def receive(self) -> FromEngine:
        message = self._outbox.get()
        if message is None:
            raise EOFError
        return message

    def stop(self) -> None:
        self._inbox.put(None)

    def kill(self) -> None:
        # A thread cannot be killed: it ends after its step.
        self.stop()

    def close(self) -> str:
        self.stop()
        self._thread.join()
        return "its thread ended"

    def _run(self, load: Load) -> None:
        try:
            run_engine(load, self._inbox, self._outbox.put)
        finally:
            self._outbox.put(None)

"""Clients that leave, noticed by the kernel rather than by the next write."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class DepartureMonitor:
    """One thread that waits in epoll for watched sockets to be closed by their peers.

    `_callbacks` holds one entry for each watched descriptor; taking it out, under `_lock`, is the right to
    call it, so a descriptor that is reused by the next connection never gets the last one's callback.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._poll = select.epoll()
        self._wake_read, self._wake_write = os.pipe()
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="departures", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<DepartureMonitor watching={len(self._callbacks)}>"

    def watch(self, client: socket.socket | None, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back once, on the monitor's thread, when the client goes. Returns the idempotent undo, which
        must be called before the socket is closed. Without a socket (a test client) nothing is watched.
        """
        if client is None:
            return lambda: None
        descriptor = client.fileno()
        with self._lock:
            self._callbacks[descriptor] = callback
            # Level-triggered: a client that has left already is seen at once.
            self._poll.register(descriptor, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
        return lambda: self._unwatch(descriptor, callback)

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._thread.is_alive():
            os.write(self._wake_write, b"x")
            self._thread.join()
            self._poll.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _unwatch(self, descriptor: int, callback: Callable[[], None]) -> None:
        with self._lock:
            if self._callbacks.get(descriptor) == callback:
                del self._callbacks[descriptor]
                self._poll.unregister(descriptor)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake_read:
                    return
                with self._lock:
                    callback = self._callbacks.pop(descriptor, None)
                    if callback is not None:
                        self._poll.unregister(descriptor)
                if callback is not None:
                    callback()

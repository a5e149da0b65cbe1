"""Clients that leave, noticed by the kernel rather than by the next write."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger(__name__)


class HangUpPoll(Protocol):
    """Waits for the peers of sockets to hang up. Level-triggered: one that has done so is seen at once."""

    def register(self, descriptor: int) -> None: ...

    def unregister(self, descriptor: int) -> None: ...

    def poll(self) -> list[int]:
        """The descriptors whose peers have hung up; waits until there is one."""
        ...

    def close(self) -> None: ...


class EpollHangUps:
    """On Linux; a readable pipe counts too, which is how the monitor is woken."""

    def __init__(self, wake: int) -> None:
        self._poll = select.epoll()
        self._poll.register(wake, select.EPOLLIN)

    def register(self, descriptor: int) -> None:
        self._poll.register(descriptor, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)

    def unregister(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)

    def poll(self) -> list[int]:
        return [descriptor for descriptor, _ in self._poll.poll()]

    def close(self) -> None:
        self._poll.close()


class KqueueHangUps:
    """On macOS and the BSDs, where reading to the end of a stream is told by a flag (kqueue(2), EV_EOF)."""

    def __init__(self, wake: int, module: Any = select) -> None:
        self._select = module
        self._wake = wake
        self._queue = module.kqueue()
        self._change(wake, module.KQ_EV_ADD)

    def register(self, descriptor: int) -> None:
        # Clear: bytes that the client sends ahead wake us once, not for ever.
        self._change(descriptor, self._select.KQ_EV_ADD | self._select.KQ_EV_CLEAR)

    def unregister(self, descriptor: int) -> None:
        self._change(descriptor, self._select.KQ_EV_DELETE)

    def poll(self) -> list[int]:
        events = self._queue.control(None, 64, None)
        return [
            event.ident
            for event in events
            if event.ident == self._wake or event.flags & self._select.KQ_EV_EOF
        ]

    def close(self) -> None:
        self._queue.close()

    def _change(self, descriptor: int, flags: int) -> None:
        self._queue.control([self._select.kevent(descriptor, self._select.KQ_FILTER_READ, flags)], 0)


def hang_ups(wake: int) -> HangUpPoll:
    """What this system has for it."""
    return EpollHangUps(wake) if hasattr(select, "epoll") else KqueueHangUps(wake)


class DepartureMonitor:
    """One thread that waits in the kernel for watched sockets to be closed by their peers.

    `_callbacks` holds one entry for each watched descriptor; taking it out, under `_lock`, is the right to
    call it, so a descriptor that is reused by the next connection never gets the last one's callback. Nor its
    departure: what was seen before a descriptor was watched is looked for again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[int, tuple[int, Callable[[], None]]] = {}
        """By descriptor, with the number that it was watched as."""
        self._watched = 0
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        self._poll = hang_ups(self._wake_read)
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
            if self._closed:
                return lambda: None
            self._watched += 1
            self._callbacks[descriptor] = (self._watched, callback)
            self._poll.register(descriptor)
        return lambda: self._unwatch(descriptor, callback)

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._thread.is_alive():
            os.write(self._wake_write, b"x")
            self._thread.join()
            with self._lock:
                # Requests may still end, and have nothing to undo any more.
                self._closed = True
                self._callbacks.clear()
                self._poll.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _unwatch(self, descriptor: int, callback: Callable[[], None]) -> None:
        with self._lock:
            if self._callbacks.get(descriptor, (0, None))[1] == callback:
                del self._callbacks[descriptor]
                self._poll.unregister(descriptor)

    def _run(self) -> None:
        while True:
            with self._lock:
                watched = self._watched
            for descriptor in self._poll.poll():
                if descriptor == self._wake_read:
                    return
                callback = self._take(descriptor, watched)
                if callback is not None:
                    callback()

    def _take(self, descriptor: int, watched: int) -> Callable[[], None] | None:
        """The callback of a descriptor that was among the first so many; a later one is asked for anew."""
        with self._lock:
            number, callback = self._callbacks.get(descriptor, (0, None))
            if callback is None:
                return None
            self._poll.unregister(descriptor)
            if number > watched:
                self._poll.register(descriptor)
                return None
            del self._callbacks[descriptor]
            return callback

"""A hub on a bad day: it stands before the fake hub and answers in drops, hangs up or says nothing."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

Mood = Literal["honest", "silent", "reset", "trickle"]

DROP_SECONDS = 0.05
"""Between two bytes of an answer that trickles: often enough that no read ever times out."""


class MoodyHub:
    """Relays connections to a hub as its `mood` is, which tests change while it serves."""

    def __init__(self, hub_url: str, mood: Mood) -> None:
        self.mood: Mood = mood
        self.asked = 0
        """Requests that came."""
        self._hub = ("127.0.0.1", int(urlsplit(hub_url).port or 0))
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(10)
            request = client.recv(65536)
            self.asked += 1
            mood = self.mood
            if mood == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif mood == "silent":
                while self.mood == "silent" and not self._over.wait(0.02):
                    pass
            else:
                self._relay(client, request, trickle=mood == "trickle")

    def _relay(self, client: socket.socket, request: bytes, *, trickle: bool) -> None:
        # The fake hub speaks HTTP/1.0: an answer ends with its connection.
        with socket.create_connection(self._hub, timeout=10) as hub:
            hub.sendall(request)
            while answer := hub.recv(65536):
                if not trickle:
                    client.sendall(answer)
                    continue
                for byte in answer:
                    if self._over.is_set() or self.mood != "trickle":
                        return
                    client.sendall(bytes([byte]))
                    time.sleep(DROP_SECONDS)


@contextmanager
def moody_hub(hub_url: str, mood: Mood) -> Iterator[MoodyHub]:
    """Serve, on threads of this process."""
    hub = MoodyHub(hub_url, mood)
    try:
        yield hub
    finally:
        hub.close()

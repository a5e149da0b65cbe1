"""gunicorn's gthread worker, mended where a server of long streams needs it.

What differs, each measured on gunicorn 27.0.1:

- A request's head is read by the main loop, not by a request thread, within a deadline: clients that
  trickle heads, or connect and say nothing, hold no thread.
- A closing connection lingers in the poller, not in the main loop, where each stalls all others for 2 s.
- On SIGTERM the listeners are closed at once, so that new connections are refused rather than left hanging,
  and the app drains; at its deadline what still streams ends with an error event.
- The end of the worker is the end of its engines, whatever the request threads are doing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import socket
import sys
import time
import uuid
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from flask import Flask
from gunicorn import http, util
from gunicorn.arbiter import Arbiter
from gunicorn.http import wsgi
from gunicorn.workers.gthread import TConn, ThreadWorker

from ..errors import ModelLoadError
from .app import create_server
from .management import ManagementServer
from .service import EXTENSION, Service

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a closed connection may take to say that it has read all (RFC 9112, section 9.6)."""

HEAD_LIMIT = 64 * 1024
"""Bytes that a head may have; a longer one is refused before any thread sees it."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of accept() that pass when other connections end."""

FINAL_SECONDS = 1.0
"""How long request threads have to send their last words once the engines are gone."""


class StreamWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """One process, many request threads; see the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads: deque[_Head] = deque()
        self._lingering: deque[tuple[float, socket.socket]] = deque()
        self._drain_deadline: float | None = None
        self._exit_status = 0
        self._management: ManagementServer | None = None

    def load_wsgi(self) -> None:
        util.write_error = write_error
        self.wsgi: Flask = create_server(on_fatal=self._model_failed)
        wsgi.SERVER = self._service.settings.server_identity
        try:
            self._management = ManagementServer(self._service)
        except OSError as error:
            log.error("MANAGEMENT_PORT=%d: %s", self._service.settings.management_port, error)  # noqa: TRY400
            self._model_failed(None)

    @property
    def _service(self) -> Service:
        service = self.wsgi.extensions[EXTENSION]
        assert isinstance(service, Service)
        return service

    def run(self) -> None:
        try:
            super().run()
        except Exception:
            log.exception("the main loop failed")
            self._exit_status = 1
        finally:
            self._end()

    def is_parent_alive(self) -> bool:
        """Whether the arbiter lives. If not we stop as on SIGTERM: nobody else would tell us."""
        if not super().is_parent_alive():
            self.alive = False
        # Always true: the loop ends by `alive`, on the way that drains.
        return True

    # -- heads ----------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                log.warning("no connection can be accepted now: %s", error)
                # Until the next turn of the loop, at most a second from now.
                self.set_accept_enabled(False)
            return
        self.nr_conns += 1
        conn = TConn(self.cfg, client, address, listener.getsockname())
        conn.parser = http.get_parser(self.cfg, client, address)
        conn.initialized = True
        self._await_head(conn)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """A kept-alive connection has something to say: its next head."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._await_head(conn)

    def _await_head(self, conn: TConn, data: bytes = b"") -> None:
        """Read a request's head, of which `data` has come already, and then hand it to a thread."""
        head = _Head(conn, time.monotonic() + self._service.settings.server_head_timeout, data)
        self._heads.append(head)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_head, head))
        if data:
            self._examine(head)

    def _read_head(self, head: _Head, client: socket.socket) -> None:
        try:
            data = client.recv(8192)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            head.data += data
            self._examine(head)
        else:
            self._forget(head)
            self._drop(head.conn)

    def _examine(self, head: _Head) -> None:
        if 0 <= head.data.find(b"\r\n\r\n") <= HEAD_LIMIT:
            self._forget(head)
            head.conn.parser.unreader.unread(bytes(head.data))
            self.enqueue_req(head.conn)
        elif len(head.data) > HEAD_LIMIT:
            self._forget(head)
            message = f"the head of the request is longer than {HEAD_LIMIT} bytes"
            with suppress(OSError):
                write_error(head.conn.sock, 431, "Request Header Fields Too Large", message)
            self._linger(head.conn)

    def _forget(self, head: _Head) -> None:
        self.poller.unregister(head.conn.sock)
        self._heads.remove(head)

    def _drop(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

    # -- closing --------------------------------------------------------------------------------------

    def finish_request(self, conn: TConn, future: Any) -> None:
        """A request is done: keep its connection, or half-close it and wait in the poller for the rest."""
        if future.cancelled() or future.exception() is not None:
            super().finish_request(conn, future)
        elif not future.result():
            self._linger(conn)
        elif ahead := conn.parser.unreader.take_buffered():
            # Sent ahead, and perhaps not all of it: a thread must not wait for the rest.
            conn.sock.setblocking(False)
            self._await_head(conn, ahead)
        else:
            super().finish_request(conn, future)

    def _linger(self, conn: TConn) -> None:
        """Half-close, and close once the peer has done so too or its time is over."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, self._read_lingering)
        except (OSError, ValueError, KeyError):
            self._drop(conn)
            return
        self._lingering.append((time.monotonic() + LINGER_SECONDS, conn.sock))

    def _read_lingering(self, client: socket.socket) -> None:
        try:
            if client.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close_lingering(client)

    def _close_lingering(self, client: socket.socket) -> None:
        self.poller.unregister(client)
        client.close()
        # Counted until now: it held a descriptor.
        self.nr_conns -= 1
        self._lingering = deque(entry for entry in self._lingering if entry[1] is not client)

    # -- deadlines: called about once a second --------------------------------------------------------

    def murder_pending(self) -> None:
        super().murder_pending()
        now = time.monotonic()
        while self._heads and self._heads[0].deadline <= now:
            head = self._heads[0]
            self._forget(head)
            self._drop(head.conn)
        while self._lingering and self._lingering[0][0] <= now:
            self._close_lingering(self._lingering[0][1])
        self._service.bodies.expire(now)
        if self._drain_deadline is not None and self._drain_deadline <= now:
            self._drain_deadline = None
            log.warning("the time to drain is over, ending what still runs")
            self._service.model.pool.abort()

    # -- the end --------------------------------------------------------------------------------------

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive and self._drain_deadline is None:
            self._drain()

    def _drain(self) -> None:
        """Stopping: no new connections, no new requests, and a deadline for those that run."""
        for listener in self.sockets:
            listener.close()
        self._service.model.pool.drain()
        now = time.monotonic()
        self._drain_deadline = now + self._service.settings.server_drain_timeout
        for head in self._heads:
            head.deadline = min(head.deadline, now + LINGER_SECONDS)

    def _model_failed(self, error: ModelLoadError | None) -> None:
        """Stop the whole server: it could never become ready. Called on any thread."""
        self._exit_status = Arbiter.WORKER_BOOT_ERROR
        self.handle_exit(None, None)

    def _end(self) -> NoReturn:
        """Stop the engines and leave. Not by sys.exit, which waits for every request thread."""
        try:
            self._service.close()
            if self._management is not None:
                self._management.close()
            deadline = time.monotonic() + FINAL_SECONDS
            for thread in list(getattr(self.tpool, "_threads", ())):
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            logging.shutdown()
            sys.stdout.flush()
            os._exit(self._exit_status)


class _Head:
    """A connection whose next request has not fully arrived."""

    __slots__ = ("conn", "data", "deadline")

    def __init__(self, conn: TConn, deadline: float, data: bytes) -> None:
        self.conn = conn
        self.data = bytearray(data)
        self.deadline = deadline


def write_error(client: socket.socket, status: int, reason: str, message: str) -> None:
    """Answer a request that never reached the app, in the shape of all other errors."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message or reason, "type": kind, "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"x-request-id: {uuid.uuid4().hex}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(client, head.encode("latin-1") + body)

"""gunicorn's gthread worker, mended where a server of long streams needs it.

What differs, each measured on gunicorn 27.0.1:

- A request is read by the main loop, not by a request thread, head and body each within a deadline, and all
  bodies within a limit of memory: clients that trickle, or connect and say nothing, hold no thread. What the
  head alone decides is answered without its body.
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
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from typing import Any, NoReturn, TypeVar

from flask import Flask
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.http import wsgi
from gunicorn.workers.gthread import TConn, ThreadWorker
from werkzeug.exceptions import BadRequest, HTTPException, RequestTimeout

from ..errors import ModelLoadError, NotReady, Overloaded
from .app import create_server, refuses
from .incoming import HEAD_LIMIT, HeadTooLong, IncomingParser
from .management import ManagementServer
from .service import EXTENSION, Service

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a closed connection may take to say that it has read all (RFC 9112, section 9.6)."""

BODY_GRACE_SECONDS = 0.25
"""How long a body may take to follow its head before it is asked whether it matters. Clients send the two one
after the other, and a request that is refused without its body ends its connection.
"""

RECEIVE_BYTES = 64 * 1024
"""Taken of one connection before the others have their turn."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of accept() that pass when other connections end."""

FINAL_SECONDS = 1.0
"""How long request threads have to send their last words once the engines are gone."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

T = TypeVar("T")

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""What the client calls the request that gunicorn is about to answer by itself."""


class StreamWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """One process, many request threads; see the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Until when each connection may take for what it is about, the longest waiting first.
        self._heads: dict[TConn, float] = {}
        self._bodies: dict[TConn, float] = {}
        self._unchecked: dict[TConn, float] = {}
        self._lingering: dict[socket.socket, float] = {}
        self._bodies_held = 0
        self._drain_deadline: float | None = None
        self._exit_status = 0
        self._quitting = False
        self._management: ManagementServer | None = None

    def load_wsgi(self) -> None:
        util.write_error = self._write_error
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

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End now. Once: at a Ctrl-C the arbiter sends another, which must not interrupt the end."""
        if not self._quitting:
            self._quitting = True
            super().handle_quit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Whether the arbiter lives. If not we stop as on SIGTERM: nobody else would tell us."""
        if not super().is_parent_alive():
            self.alive = False
        # Always true: the loop ends by `alive`, on the way that drains.
        return True

    # -- requests that arrive -------------------------------------------------------------------------

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
        conn.parser = IncomingParser(self.cfg, address, self._service.settings.server_max_body)
        conn.initialized = True
        self._await_request(conn)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """A kept-alive connection has something to say: its next head."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._await_request(conn)

    def _await_request(self, conn: TConn, ahead: bytes = b"") -> None:
        """Read a request, of which `ahead` has come already, and then hand it to a thread."""
        self._heads[conn] = time.monotonic() + self._service.settings.server_head_timeout
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read, conn))
        if ahead:
            self._receive(conn, ahead)

    def _read(self, conn: TConn, client: socket.socket) -> None:
        if conn not in self._heads and conn not in self._bodies:
            # Refused to make room, in this very turn of the loop, after the poller had seen it.
            return
        try:
            data = client.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop_arriving(conn)
            return
        if data:
            self._receive(conn, data)
        elif conn.parser.request is None:
            self._drop_arriving(conn)
        else:
            # It may have closed one direction only, and wait for what we say.
            self._refuse(conn, BadRequest("the body breaks off before its end"))

    def _receive(self, conn: TConn, data: bytes) -> None:
        self._attempt(partial(self._feed, conn, data), conn)

    def _attempt(self, step: Callable[[], None], conn: TConn) -> None:
        """Do this for the connection, and answer it where that raises: nothing may end the main loop."""
        try:
            step()
        except HTTPException as error:
            self._refuse(conn, error)
        except Exception as error:
            self._answer_unreadable(conn, error)

    def _feed(self, conn: TConn, data: bytes) -> None:
        held = conn.parser.held
        complete = conn.parser.feed(data)
        self._bodies_held += conn.parser.held - held
        if complete:
            self._hand_over(conn)
        elif conn.parser.request is not None and conn in self._heads:
            self._await_body(conn)
        while self._bodies_held > self._service.settings.body_memory and self._bodies:
            # Who has waited the longest: clients that stall make room for those that do not.
            self._refuse(next(iter(self._bodies)), Overloaded("the server receives too much at the moment"))

    def _await_body(self, conn: TConn) -> None:
        """The head is there: wait for the body. Raises BadRequest where the client asks first, in vain."""
        if conn.parser.expects_continue:
            self._check_head(conn)
            if not _sent(conn.sock, CONTINUE):
                self._drop_arriving(conn)
                return
        del self._heads[conn]
        now = time.monotonic()
        self._bodies[conn] = now + self._service.settings.server_body_timeout
        self._unchecked[conn] = now + BODY_GRACE_SECONDS

    def _check_head(self, conn: TConn) -> None:
        """Raise BadRequest where the body cannot matter. The app will tell another reason."""
        _, environ = wsgi.create(conn.parser.request, conn.sock, conn.client, conn.server, self.cfg)
        if refuses(self.wsgi, environ):
            raise BadRequest("the body was not awaited")

    def _refuse(self, conn: TConn, error: Exception) -> None:
        """Let the app answer without the body: it says what the error is, or what else is wrong."""
        self._bodies_held -= conn.parser.held
        conn.parser.refuse(error)
        self._hand_over(conn)

    def _answer_unreadable(self, conn: TConn, error: Exception) -> None:
        """Refuse a head that the app could not be shown."""
        _request_id.set(conn.parser.request_id)
        if isinstance(error, HeadTooLong):
            message = f"the head of the request is longer than {HEAD_LIMIT} bytes"
            with suppress(OSError):
                self._write_error(conn.sock, 431, "Request Header Fields Too Large", message)
        else:
            self.handle_error(None, conn.sock, conn.client, error)
        _request_id.set(None)
        self._forget(conn)
        self._release(conn)
        self._linger(conn)

    def _hand_over(self, conn: TConn) -> None:
        self._forget(conn)
        self.enqueue_req(conn)

    def _forget(self, conn: TConn) -> None:
        """Wait no longer for what it says."""
        self.poller.unregister(conn.sock)
        self._heads.pop(conn, None)
        self._bodies.pop(conn, None)
        self._unchecked.pop(conn, None)

    def _drop_arriving(self, conn: TConn) -> None:
        self._forget(conn)
        self._drop(conn)

    def _release(self, conn: TConn) -> bytes:
        """Forget its request; what it has sent beyond that."""
        self._bodies_held -= conn.parser.held
        ahead: bytes = conn.parser.release()
        return ahead

    def _drop(self, conn: TConn) -> None:
        self._release(conn)
        self.nr_conns -= 1
        conn.close()

    def _write_error(self, client: socket.socket, status: int, reason: str, message: str) -> None:
        """Answer a request that never reached the app, in the shape of all other errors."""
        self._service.metrics.http_answered("other", "other", status)
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message or reason, "type": kind, "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"x-request-id: {_request_id.get() or uuid.uuid4().hex}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        util.write_nonblock(client, head.encode("latin-1") + body)

    # -- closing --------------------------------------------------------------------------------------

    def finish_request(self, conn: TConn, future: Any) -> None:
        """A request is done: keep its connection, or half-close it and wait in the poller for the rest."""
        ahead = self._release(conn)
        if future.cancelled() or future.exception() is not None:
            super().finish_request(conn, future)
        elif not future.result():
            self._linger(conn)
        elif ahead:
            conn.sock.setblocking(False)
            self._await_request(conn, ahead)
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
        self._lingering[conn.sock] = time.monotonic() + LINGER_SECONDS

    def _read_lingering(self, client: socket.socket) -> None:
        try:
            if client.recv(RECEIVE_BYTES):
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
        del self._lingering[client]

    # -- deadlines ------------------------------------------------------------------------------------

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, BODY_GRACE_SECONDS) if self._unchecked else timeout)

    def murder_pending(self) -> None:
        """Called in each turn of the loop, at least once a second."""
        super().murder_pending()
        self._make_room()
        now = time.monotonic()
        for conn in _late(self._heads, now):
            self._drop_arriving(conn)
        for conn in _late(self._unchecked, now):
            del self._unchecked[conn]
            self._attempt(partial(self._check_head, conn), conn)
        for conn in _late(self._bodies, now):
            self._refuse(conn, self._too_late())
        for client in _late(self._lingering, now):
            self._close_lingering(client)
        if self._drain_deadline is not None and self._drain_deadline <= now:
            self._drain_deadline = None
            log.warning("the time to drain is over, ending what still runs")
            self._service.model.pool.abort()

    def _make_room(self) -> None:
        """At the limit connections that are kept give way to new ones, the longest idle first."""
        while self.nr_conns >= self.worker_connections and self.keepalived_conns:
            conn = self.keepalived_conns.popleft()
            self.poller.unregister(conn.sock)
            self._drop(conn)

    def _too_late(self) -> Exception:
        if not self.alive:
            return NotReady("the server is shutting down", code="shutting_down")
        seconds = self._service.settings.server_body_timeout
        return RequestTimeout(f"the body did not come within {seconds} seconds")

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
        for arriving in (self._heads, self._bodies):
            for conn, deadline in arriving.items():
                arriving[conn] = min(deadline, now + LINGER_SECONDS)

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


def _late(deadlines: dict[T, float], now: float) -> list[T]:
    """Whose deadline has passed. All may wait equally long, so that they are in the order of deadlines."""
    return list(takewhile(lambda waiting: deadlines[waiting] <= now, deadlines))


def _sent(client: socket.socket, data: bytes) -> bool:
    """Whether the client could be told this at once."""
    try:
        return client.send(data) == len(data)
    except OSError:
        return False

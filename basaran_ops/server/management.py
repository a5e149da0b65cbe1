"""The management port: probes, metrics, draining and state, on threads of its own.

The API's request threads may all be streaming, and its main loop busy: a probe must not wait for them.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from flask import Flask, Response, jsonify, request

from ..errors import InvalidRequest, Overloaded
from ..pool import PoolStatus
from . import error_responses
from .service import Service

log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

CLIENT_SECONDS = 10
"""How long a client of this port may take to say what it wants, or to take a piece of the answer."""

MOST_CONNECTIONS = 64
"""Open at once, each with a thread. Kubernetes and Prometheus have one or two for a moment."""

MOST_DRAINS = 8
"""Answers of /drain that are waited for at once."""

SUPERVISION_SECONDS = 1.0

MAX_DELAY = 3600.0


def create_app(service: Service, stopping: threading.Event) -> Flask:
    """The management app; `stopping` ends what waits in it."""
    app = Flask("basaran_ops.management", static_folder=None)
    error_responses.install(app)
    pool = service.model.pool
    drains = threading.BoundedSemaphore(MOST_DRAINS)

    @app.get("/livez")
    def livez() -> tuple[Response, int]:
        """503 where only a restart can help: an engine that is lost, or hangs in spite of supervision."""
        reasons = unhealthy(pool.status(), service.settings.engine_stall_timeout)
        return jsonify(alive=not reasons, reasons=reasons), 503 if reasons else 200

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        """503 while loading, draining or without an engine. A full queue is ready: it answers 429."""
        status = pool.status()
        return jsonify(ready=status.ready, state=status.word), 200 if status.ready else 503

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.metrics.render(), content_type=METRICS_TYPE)

    @app.route("/drain", methods=["GET", "POST"])
    def drain() -> Response:
        """Refuse new requests from now on, and answer after `delay` seconds: for a preStop hook, during which
        load balancers learn to send nothing more. 429 where many wait for that already.
        """
        if "Sec-Fetch-Site" in request.headers or "Origin" in request.headers:
            raise InvalidRequest("draining is not for pages in browsers")
        delay = _delay(request.args.get("delay", "0"))
        log.info("draining was asked for, the answer comes in %g s", delay)
        pool.drain()
        if delay and not drains.acquire(blocking=False):
            raise Overloaded(f"{MOST_DRAINS} clients wait for the end of draining already")
        if delay:
            stopping.wait(delay)
            drains.release()
        return jsonify(draining=True)

    @app.get("/state")
    def state() -> Response:
        return jsonify(describe(service))

    return app


def unhealthy(status: PoolStatus, stall_seconds: float) -> list[str]:
    """Why the server should be restarted; empty if it should not."""
    reasons = [
        f"engine {replica.number} dies again and again: {replica.stage}"
        for replica in status.replicas
        if replica.lost
    ]
    return reasons + [
        f"engine {replica.number} has done no step for {replica.step_age:.0f} s"
        for replica in status.replicas
        if stall_seconds and replica.step_age > stall_seconds
    ]


def describe(service: Service) -> dict[str, object]:
    """What is going on, for people."""
    status, info = service.model.pool.status(), service.model.info
    return {
        "state": status.word,
        "model": service.model_name,
        "versions": {name: version(name) for name in ("basaran-ops", "torch", "transformers", "gunicorn")},
        "info": None if info is None else asdict(info) | {"eos_token_ids": sorted(info.eos_token_ids)},
        "slots": service.settings.slots,
        "running": status.running,
        "waiting": status.waiting,
        "queue_capacity": service.settings.server_queue_limit,
        "oldest_waiting_seconds": round(status.oldest_waiting, 3),
        "replicas": [asdict(replica) for replica in status.replicas],
        "uptime_seconds": round(time.time() - service.created, 1),
    }


class ManagementServer:
    """Serves the management app, and looks after engines that hang, until closed."""

    def __init__(self, service: Service) -> None:
        """Raises OSError if the port is taken."""
        settings = service.settings
        self._stopping = threading.Event()
        self._service = service
        self._server = _Server(settings.host, settings.management_port)
        self._server.set_app(create_app(service, self._stopping))
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="management", daemon=True),
            threading.Thread(target=self._supervise, name="supervision", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    def _supervise(self) -> None:
        limit = self._service.settings.engine_stall_timeout
        while not self._stopping.wait(SUPERVISION_SECONDS):
            if limit:
                self._service.model.pool.kill_stalled(limit)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        # When each connection came, the oldest first; nothing once its request has been read.
        self._open: dict[socket.socket, float | None] = {}
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                # Who says nothing gives way first: a probe speaks at once.
                silent = (each for each, since in self._open.items() if since is not None)
                self._end(next(silent, next(iter(self._open))))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def heard(self, connection: Any) -> None:
        """Its request has been read."""
        with self._lock:
            if connection in self._open:
                self._open[connection] = None

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: ends who sends its request in drops, each in time."""
        too_long = time.monotonic() - CLIENT_SECONDS
        with self._lock:
            for connection, since in list(self._open.items()):
                if since is not None and since < too_long:
                    self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        """Let its thread find that it has ended, and close it."""
        del self._open[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for our name, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS
    # Head and body are written apart: the body would wait 40 ms for the head to be acknowledged.
    disable_nagle_algorithm = True

    def parse_request(self) -> bool:
        understood = super().parse_request()
        cast("_Server", self.server).heard(self.request)
        return understood

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its caller's name
        log.debug(format, *args)


def _delay(text: str) -> float:
    try:
        delay = float(text)
    except ValueError:
        delay = -1.0
    if not 0 <= delay <= MAX_DELAY:
        raise InvalidRequest(f"delay must be between 0 and {MAX_DELAY:g} seconds", param="delay")
    return delay

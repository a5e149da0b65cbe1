"""gunicorn's configuration, from the settings: `gunicorn -c python:basaran_ops.server.gunicorn_conf`."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from basaran_ops.pool.placement import placements
from basaran_ops.settings import InvalidSettings, Settings, unknown_variables
from basaran_ops.telemetry.logs import configure_logs
from basaran_ops.telemetry.tracing import check_tracing

EXIT_SECONDS = 5
"""From the drain's deadline to the last thread's end."""


class StructuredLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Hands gunicorn's records to our one chain instead of writing them itself."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        # gunicorn quotes what it could not read, and that may be a prompt or a key.
        if msg.startswith("Invalid request from ip="):
            msg = msg.partition(": ")[0] + ": it could not be read"
        super().warning(msg, *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        # A client that does not read, or is gone: no defect, and worth no traceback of each.
        if msg == "Socket error processing request." and isinstance(sys.exception(), TimeoutError):
            super().info("a client was cut off: it read nothing for %d s", settings.server_channel_timeout)
            return
        super().exception(msg, *args, **kwargs)


def when_ready(server: Any) -> None:
    """What the arbiter must have before it starts the worker."""
    _cut_off_slow_readers(server)
    _hurry_at_second_sigterm(server)


def _hurry_at_second_sigterm(server: Any) -> None:
    """Gunicorn takes no notice of a SIGTERM while it stops; whoever sends another wants it to be quick."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        server.signal(signal.SIGQUIT if received else number, frame)
        received.append(number)

    signal.signal(signal.SIGTERM, stop)


def _cut_off_slow_readers(server: Any) -> None:
    """Accepted sockets inherit this: a client that does not read what we send is cut off in time."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    milliseconds = settings.server_channel_timeout * 1000
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


try:
    settings = Settings.from_environment(os.environ)
    placements(settings, os.environ)
    check_tracing(os.environ)
except InvalidSettings as error:
    sys.exit(f"invalid settings:\n{error}")

configure_logs(settings, process="arbiter")
# Here, before gunicorn adds a SERVER_SOFTWARE of its own to the environment.
for warning in unknown_variables(os.environ):
    logging.getLogger(__name__).warning(warning)

wsgi_app = "basaran_ops.server.app:create_server()"
"""Named for gunicorn; the worker makes the app itself, to hear of its failures."""

# A connection is a descriptor, and the usual soft limit of 1024 is soon reached.
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
worker_class = "basaran_ops.server.worker.StreamWorker"
workers = 1
threads = settings.threads
worker_connections = settings.server_connection_limit
keepalive = settings.server_keepalive
graceful_timeout = settings.server_drain_timeout + EXIT_SECONDS
timeout = 60
# The worker bounds the head as a whole; a prompt may be in the query of a GET.
limit_request_line = 0
control_socket_disable = True
logger_class = StructuredLogger
loglevel = settings.log_level
proc_name = "basaran_ops"
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn's heartbeat

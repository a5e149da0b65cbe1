"""Who may call the API: keys, and origins of pages."""

from __future__ import annotations

import hmac
import threading
from pathlib import Path

from flask import Flask, Response, request

from ..errors import Unauthorized
from ..settings import Settings

OPEN_PATHS = ("/health", "/openapi.json")
"""Answered without a key: probes have none."""

OPEN_BLUEPRINTS = ("playground",)
"""The page asks for the key that it calls the API with."""


class ApiKeys:
    """The keys of the settings and of a file, which is read again when it changes: mounted secrets do."""

    def __init__(self, settings: Settings) -> None:
        self.required = settings.asks_for_key
        self._given = _keys(settings.server_api_keys.split(","))
        self._file = Path(settings.server_api_keys_file) if settings.server_api_keys_file else None
        self._lock = threading.Lock()
        self._version: tuple[int, int, int] | None = None
        self._filed: tuple[bytes, ...] = ()
        self._refresh()

    def accepts(self, key: str) -> bool:
        """Whether this is one of the keys; takes the same time whichever it is not."""
        self._refresh()
        sent = key.encode()
        matches = [hmac.compare_digest(sent, known) for known in self._given + self._filed]
        return any(matches)

    def _refresh(self) -> None:
        """Raises OSError at start if the file cannot be read; later the last keys stay."""
        if self._file is None:
            return
        with self._lock:
            try:
                stat = self._file.stat()
                version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if version != self._version:
                    self._filed = _keys(self._file.read_text().splitlines())
                    self._version = version
            except OSError:
                if self._version is None:
                    raise


def _keys(lines: list[str]) -> tuple[bytes, ...]:
    return tuple(line.strip().encode() for line in lines if line.strip())


def install(app: Flask, settings: Settings) -> None:
    """Ask for a key where keys are set; answer browsers' questions about origins."""
    keys = ApiKeys(settings)
    origins = [origin.strip() for origin in settings.server_cors_origins.split(",") if origin.strip()]

    def check_key() -> None:
        opened = request.path.rstrip("/") in OPEN_PATHS or request.blueprint in OPEN_BLUEPRINTS
        # A preflight request carries no key.
        if not keys.required or opened or request.method == "OPTIONS":
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not keys.accepts(key.strip()):
            raise Unauthorized(missing=not key.strip())

    def allow_origin(response: Response) -> Response:
        origin = request.headers.get("Origin")
        if origin is None or not ("*" in origins or origin in origins):
            return response
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
        response.headers.add("Vary", "Origin")
        response.headers["Access-Control-Expose-Headers"] = "x-request-id, openai-processing-ms, retry-after"
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
            asked = request.headers.get("Access-Control-Request-Headers", "authorization, content-type")
            response.headers["Access-Control-Allow-Headers"] = asked
            response.headers["Access-Control-Max-Age"] = "600"
        return response

    app.before_request(check_key)
    app.after_request(allow_origin)

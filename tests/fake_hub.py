"""A hub on this machine: the few endpoints that huggingface_hub asks to download a model, and bad days."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1234567890" * 4

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/?]+))?(\?.*)?$")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


@dataclass
class FakeHub:
    """What the hub holds, and how it behaves. Changed by tests while it serves."""

    url: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    status: int | None = None
    """Answer everything with this."""
    error_code: str = ""
    """The X-Error-Code header of that answer."""
    files_only: bool = False
    """Only refuse files: a gated model's page is public."""
    token: str = ""
    """The only one let in, where set."""
    stall_at: int | None = None
    """Bytes of a safetensors file after which nothing more comes, for as long as this is set."""
    stalled: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """Paths of the files that were asked for."""
        return [r.rpartition("/")[2] for r in self.requests if r.startswith("GET ") and "/resolve/" in r]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    # Not 1.1: the client's pool would keep connections, and their threads here, alive.
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        api, file = API.match(self.path), FILE.match(self.path)
        match = api or file
        let_in = hub.token and self.headers.get("authorization") == f"Bearer {hub.token}"
        if hub.status is not None and not let_in and (file or not hub.files_only):
            self._refuse(hub.status, hub.error_code)
        elif match is None or match["repo"] not in hub.repos:
            self._refuse(404, "RepoNotFound")
        elif match["revision"] not in (None, *hub.revisions):
            self._refuse(404, "RevisionNotFound")
        elif file:
            self._send_file(hub.repos[file["repo"]] / file["path"])
        elif match["what"] == "tree":
            self._send(json.dumps(_tree(hub.repos[match["repo"]])).encode())
        else:
            self._send(json.dumps({"id": match["repo"], "sha": COMMIT}).encode())

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        data = path.read_bytes()
        self._send(data, stall_at=self.server.hub.stall_at if path.suffix == ".safetensors" else None)

    def _send(self, data: bytes, stall_at: int | None = None) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[:stall_at])
        if stall_at is not None:
            hub = self.server.hub
            hub.stalled.set()
            while hub.stall_at is not None:
                time.sleep(0.01)


def _tree(repo: Path) -> list[dict[str, object]]:
    return [
        {
            "type": "file",
            "path": str(path.relative_to(repo)),
            "size": path.stat().st_size,
            "oid": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(repo.rglob("*"))
        if path.is_file()
    ]


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, port: int, hub: FakeHub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""


@contextmanager
def fake_hub(hub: FakeHub | None = None, port: int = 0) -> Iterator[FakeHub]:
    """Serve a hub, on a thread of this process."""
    hub = hub or FakeHub()
    with _Server(port, hub) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.stall_at = None
            server.shutdown()
            thread.join()

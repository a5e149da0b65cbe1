"""Requests that are nearly right, and some that are not, as bytes on a real server's sockets.

`python -m tests.fuzz.requests 20000` sends so many.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import httpx

from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny
from .oddities import BODIES, BYTES, ENDS, HEADERS, METHODS, NAMES, NORMAL, PATHS, RAW_VALUES, SIZES, VALUES

KEY = "secret"
MAX_BODY = 50_000
CLIENTS = 4
PATIENCE = 20.0
"""Seconds without an answer that are a hang: requests ask for few tokens of a tiny model."""

REFUSALS = {400, 401, 404, 405, 408, 411, 413, 415, 417, 429, 431, 501, 505}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

SETTINGS = {
    "ENGINE_SLOTS": "4",
    "ENGINE_CONTEXT_LENGTH": "48",
    "SERVER_API_KEYS": KEY,
    "SERVER_MAX_BODY": str(MAX_BODY),
    "SERVER_CORS_ORIGINS": "https://good.example",
    "MODEL_DTYPE": "float32",
}


Then = Literal["wait", "stop", "leave"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    stopped: bool = False
    """Whether the client had closed its side, which may mean that it has left."""

    def check(self) -> None:
        """Raise AssertionError for what no client should ever meet."""
        gone = self.stopped and self.status == 499
        assert self.status < 400 or self.status in REFUSALS or gone, (
            f"status {self.status}: {self.body[:300]!r}"
        )
        assert "x-injected" not in self.headers, "a header was injected"
        assert "x-request-id" in self.headers, f"{self.status} has no id"
        if self.status >= 400:
            assert self.headers["content-type"] == "application/json", self.headers
            if self.body:
                error = json.loads(self.body)["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert isinstance(error["message"], str)
                assert error["message"]
                assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
        elif self.headers.get("content-type", "").startswith("text/event-stream"):
            assert self.stopped or self.body.endswith(b"data: [DONE]\n\n"), self.body[-300:]
            assert b'"internal_error"' not in self.body
        elif self.headers.get("content-type") == "application/json" and self.body:
            json.loads(self.body)


class Bodies:
    """JSON that was right before chance took a hand in it."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def draw(self, path: str) -> bytes:
        value: Any = json.loads(json.dumps(self._random.choice(BODIES[path])))
        for _ in range(self._random.choice([0, 1, 1, 1, 2, 3])):
            value = self._mutated(value)
        ascii_only = self._random.random() < 0.5
        text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        return self._spoilt(text) if self._random.random() < 0.3 else text

    def _mutated(self, value: Any) -> Any:
        """One place in it is another value, gone, doubled, or named differently."""
        if isinstance(value, dict) and value and self._random.random() < 0.85:
            name = self._random.choice(list(value))
            if self._random.random() < 0.5:
                return value | {name: self._mutated(value[name])}
            changed = dict(value)
            what = self._random.randrange(4)
            if what == 0:
                del changed[name]
            elif what == 1:
                changed[self._random.choice(NAMES)] = self._random.choice(VALUES)
            elif what == 2:
                changed[str(self._random.choice(VALUES))] = changed.pop(name)
            else:
                changed[name] = self._random.choice(VALUES)
            return changed
        if isinstance(value, list) and value and self._random.random() < 0.7:
            at = self._random.randrange(len(value))
            return self._random.choice(
                [[*value[:at], self._mutated(value[at]), *value[at + 1 :]], value + value, value[:at]]
            )
        return self._random.choice(VALUES)

    def _spoilt(self, text: bytes) -> bytes:
        """Not JSON any more, or JSON such as no library writes."""
        at = self._random.randrange(len(text) + 1)
        what = self._random.randrange(8)
        if what == 0:
            return text[:at]
        if what == 1:
            return text[:at] + self._random.randbytes(self._random.randint(1, 4)) + text[at:]
        if what == 2:
            return text + self._random.choice([b"x", b"{}", b"\x00", b" " * 2000, text])
        if what == 3:
            return self._random.choice([b"\xef\xbb\xbf", b"\n\n", b"\x1f\x8b", b")]}',"]) + text
        if what == 4:
            return text.decode("utf-8", "replace").encode(self._random.choice(["utf-16", "utf-32"]))
        # In place of a value.
        colon = text.find(b": ", at)
        end = min((found for end in b",}" if (found := text.find(end, colon)) > 0), default=len(text))
        raw = self._random.choice(RAW_VALUES).encode()
        return raw if colon < 0 else text[: colon + 2] + raw + text[end:]


class Connection:
    """One client's, which is kept while both sides keep to HTTP."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._data = b""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._data = None, b""

    def ask(self, request: bytes, *, head: bool = False) -> Answer:
        """Send a whole request and read its answer; on a new connection if the last was closed."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Refused before its end: the answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(request)
        answer = self._read(head=head)
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def ask_and_stop(self, data: bytes) -> list[Answer]:
        """Send anything on a connection of its own and no more; all answers until the server closes."""
        self.close()
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        with contextlib.suppress(OSError):
            self._socket.sendall(data)
            self._socket.shutdown(socket.SHUT_WR)
        answers = []
        while self._fill():
            pass
        while self._data:
            answers.append(self._read(head=data.startswith(b"HEAD ")))
        self.close()
        return [replace(answer, stopped=True) for answer in answers]

    def ask_and_leave(self, data: bytes, seconds: float) -> None:
        """Send this, wait a little, and be gone without a word."""
        self.close()
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as client:
            # Closed by a reset, not by saying goodbye.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                client.sendall(data)
            time.sleep(seconds)

    def _read(self, *, head: bool) -> Answer:
        status, headers = self._read_head()
        while status == 100:
            status, headers = self._read_head()
        if head or status in (204, 304):
            return Answer(status, headers, b"")
        if "content-length" in headers:
            return Answer(status, headers, self._take(int(headers["content-length"])))
        assert headers.get("transfer-encoding") == "chunked", f"an answer without a length: {headers}"
        body = b""
        while size := int(self._take_line(), 16):
            body += self._take(size)
            self._take_line()
        self._take_line()
        return Answer(status, headers, body)

    def _read_head(self) -> tuple[int, dict[str, str]]:
        version, status, *_ = self._take_line().split(b" ")
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), version
        headers: dict[str, str] = {}
        while line := self._take_line().decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(status), headers

    def _take_line(self) -> bytes:
        while b"\r\n" not in self._data:
            assert self._fill(), f"the answer breaks off: {self._data[:300]!r}"
        line, _, self._data = self._data.partition(b"\r\n")
        return line

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            assert self._fill(), "the answer breaks off in its body"
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _fill(self) -> bool:
        assert self._socket is not None
        try:
            more = self._socket.recv(65536)
        except ConnectionResetError:
            return False
        except TimeoutError:
            raise AssertionError(f"no answer in {PATIENCE:g} s") from None
        self._data += more
        return bool(more)


class Client:
    """Sends requests of all kinds and looks at each answer.

    Each kind gives a request, and what the client does then: it waits for the answer, or stops, as it has
    nothing more to say though the server may wait for more, or leaves.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._random = Random(seed)
        self._bodies = Bodies(self._random)
        self._connection = Connection(port)
        self.statuses: Counter[str] = Counter()
        self.sent = 0
        self.failures: dict[str, str] = {}
        """One for each kind of failure, with the request."""

    def run(self, count: int) -> None:
        kinds = [self._odd_body, self._odd_path, self._odd_headers, self._odd_bytes, self._odd_length]
        kinds += [self._departure]
        with contextlib.closing(self._connection):
            for _ in range(count):
                kind = self._random.choices(kinds, [74, 8, 7, 4, 4, 3])[0]
                request: bytes = b""
                try:
                    request, then = kind()
                    self._note(self._answers(request, then))
                except Exception as error:
                    self._connection.close()
                    told = f"{type(error).__name__}: {error}"
                    self.failures.setdefault(told[:60], f"{told}\n{request[:2000]!r}")
                self.sent += 1

    def _answers(self, request: bytes, then: Then) -> list[Answer]:
        if then == "leave":
            self._connection.ask_and_leave(request, self._random.choice([0, 0.002, 0.01]))
            return []
        if then == "stop":
            return self._connection.ask_and_stop(request)
        return [self._connection.ask(request, head=request.startswith(b"HEAD "))]

    def _note(self, answers: list[Answer]) -> None:
        for answer in answers:
            answer.check()
            self.statuses[str(answer.status)] += 1
        if not answers:
            self.statuses["closed"] += 1

    def _head(self, method: str, path: str, *fields: str, key: bool = True) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *fields]
        if key and not any(field.lower().startswith("authorization") for field in fields):
            lines.append(f"Authorization: Bearer {KEY}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8" if "é" in path else "latin-1")

    def _whole(self, path: str, body: bytes, *fields: str) -> bytes:
        return self._head("POST", path, *fields, f"Content-Length: {len(body)}") + body

    def _odd_body(self) -> tuple[bytes, Then]:
        path = self._random.choice(list(BODIES))
        body = self._bodies.draw(path)
        if self._random.random() < 0.01:
            body += b" " * MAX_BODY
        return self._whole(path, body), "wait"

    def _odd_path(self) -> tuple[bytes, Then]:
        method, path = self._random.choice(METHODS), self._random.choice(PATHS)
        key = self._random.random() < 0.9
        return self._head(method, path, "Content-Length: 0", key=key), "wait"

    def _odd_headers(self) -> tuple[bytes, Then]:
        fields = self._random.choices(HEADERS, k=self._random.choice([1, 1, 2, 3]))
        path = self._random.choice(list(BODIES))
        return self._whole(path, self._bodies.draw(path), *fields), "stop"

    def _odd_bytes(self) -> tuple[bytes, Then]:
        request = bytearray(self._whole("/v1/completions", json.dumps(NORMAL).encode()))
        for _ in range(self._random.choice([1, 1, 2, 5])):
            at = self._random.randrange(len(request))
            end = at + self._random.choice([0, 0, 1, 1, 3, 20])
            request[at:end] = self._random.choice([*BYTES, self._random.randbytes(3)])
        return bytes(request), "stop"

    def _odd_length(self) -> tuple[bytes, Then]:
        body = json.dumps(NORMAL).encode()
        if self._random.random() < 0.5:
            length = self._random.choice([0, 1, len(body) - 1, len(body) + 1, 10**4, 10**6, 10**18])
            request = self._head("POST", "/v1/completions", f"Content-Length: {length}") + body
        else:
            request = self._head("POST", "/v1/completions", "Transfer-Encoding: chunked") + self._chunks(body)
        if self._random.random() < 0.3:
            request += self._head("GET", "/health")
        return request, "stop"

    def _departure(self) -> tuple[bytes, Then]:
        path = self._random.choice(["/v1/completions", "/v1/chat/completions"])
        request = self._whole(path, self._bodies.draw(path))
        return request[: self._random.choice([len(request), self._random.randrange(len(request))])], "leave"

    def _chunks(self, body: bytes) -> bytes:
        """A body in chunks, one of which may lie."""
        cut = self._random.randrange(len(body))
        framed = b""
        for piece in (body[:cut], body[cut:]):
            if piece:
                wrong = self._random.choice([0, 0, 0, 0, 1, -1, 10**6, 2**64])
                size = self._random.choice(SIZES) % max(0, len(piece) + wrong)
                framed += (
                    size + b"\r\n" + piece + self._random.choice([b"\r\n"] * 5 + [b"\n", b"", b"\r\n\r\n"])
                )
        return framed + self._random.choice(ENDS)


@dataclass(frozen=True)
class Report:
    requests: int
    seconds: float
    statuses: Counter[str]

    def __str__(self) -> str:
        rate = self.requests / self.seconds
        told = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        return f"{self.requests} requests in {self.seconds:.0f} s ({rate:.0f}/s); {told}"


def fuzz(server: RunningServer, count: int, seed: int) -> Report:
    """Send so many by several clients. Fails unless each answer is one that a client may meet, and the server
    is afterwards as it was before.
    """
    server.http.headers["Authorization"] = f"Bearer {KEY}"
    normal = _normal(server)
    descriptors = sum(process.num_fds() for process in server.processes())
    clients = [Client(server.port, seed * CLIENTS + number) for number in range(CLIENTS)]
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client.run, count // CLIENTS) for client in clients]:
            done.result()
    seconds = time.monotonic() - started
    failures = {kind: told for client in clients for kind, told in client.failures.items()}
    assert not failures, "\n".join(failures.values())
    assert _normal(server) == normal
    health = server.wait_for(lambda health: health["outstanding"] == 0)
    assert (health["ready"], health["replicas"][0]["restarts"]) == (True, 0)
    state = httpx.get(f"{server.management_url}/state").json()
    assert (state["running"], state["waiting"], state["replicas"][0]["stats"]["cached_tokens"]) == (0, 0, 0)
    log = server.log.read_text()
    assert "a request failed unexpectedly" not in log
    assert "Traceback" not in log
    # Connections linger for two seconds.
    deadline = time.monotonic() + 5
    while (held := sum(process.num_fds() for process in server.processes())) > descriptors:
        assert time.monotonic() < deadline, f"{held - descriptors} descriptors are left"
        time.sleep(0.1)
    statuses = sum((client.statuses for client in clients), Counter[str]())
    return Report(sum(client.sent for client in clients), seconds, statuses)


def _normal(server: RunningServer) -> str:
    """The text that a normal request gets."""
    # As soon as every slot is free, so that nothing else is in the same step.
    server.wait_for(lambda health: health["outstanding"] == 0)
    response = server.complete(**NORMAL)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


@contextmanager
def fuzzed_server(directory: Path, model: Path) -> Iterator[RunningServer]:
    (directory / "template").write_text(TEMPLATE)
    with running_server(
        directory / "log", MODEL=str(model), MODEL_CHAT_TEMPLATE=str(directory / "template"), **SETTINGS
    ) as server:
        yield server.wait_ready()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with fuzzed_server(directory, save_tiny(directory / "model")) as server:
            print(fuzz(server, int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1))


if __name__ == "__main__":
    main()

"""Clients that can say how their request ended: whole, with an error, cut, or never."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ..running_server import RunningServer

DEADLINE = 20.0
"""Seconds after which a client counts as hung."""

How = Literal["complete", "error", "cut", "hung"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request ended, as its client saw it."""

    how: How
    status: int = 0
    code: str | None = None
    """An error's code, of the answer or of the last event."""
    text: str = ""
    detail: str = ""
    seconds: float = 0.0


def ask(
    port: int,
    body: Mapping[str, Any],
    *,
    path: str = "/v1/completions",
    headers: Mapping[str, str] | None = None,
    seconds: float = DEADLINE,
) -> Ending:
    """Send one request on a connection of its own and read its answer to the end."""
    started = time.monotonic()
    until = started + seconds
    status, data = 0, b""

    def ended(how: How, **fields: Any) -> Ending:
        return Ending(how, status, seconds=time.monotonic() - started, **fields)

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    with closing(connection):
        try:
            connection.request("POST", path, json.dumps(body), dict(headers or {}))
            response = connection.getresponse()
            status = response.status
            _wait_at_most(connection, until)
            while piece := response.read1(65536):
                data += piece
                _wait_at_most(connection, until)
            if response.length:
                raise http.client.IncompleteRead(data, response.length)
        except TimeoutError:
            return ended("hung", detail=f"after {len(data)} bytes")
        except (OSError, http.client.HTTPException) as error:
            return ended("cut", detail=f"{type(error).__name__}: {error}, after {len(data)} bytes")
    if response.getheader("Content-Type", "").startswith("text/event-stream"):
        return ended(**_events_ending(data))
    return ended(**_whole_ending(status, data))


def _wait_at_most(connection: http.client.HTTPConnection, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    if connection.sock is not None:
        connection.sock.settimeout(left)


def _whole_ending(status: int, data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        return {"how": "cut", "detail": f"no JSON: {data[:80]!r}"}
    if status != 200:
        error = answer["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return {"how": "error", "code": error["code"], "detail": error["message"]}
    text = "".join(_text(choice) for choice in answer["choices"])
    return {"how": "complete", "text": text}


def _events_ending(data: bytes) -> dict[str, Any]:
    """What a stream came to. Its end comes once, as its very last event, and an error only before that."""
    events = [event for event in data.decode().split("\n\n") if event.startswith("data: ")]
    payloads = [json.loads(event.removeprefix("data: ")) for event in events if event != "data: [DONE]"]
    if events.count("data: [DONE]") != 1 or events[-1] != "data: [DONE]":
        return {"how": "cut", "detail": f"its end is {data[-80:]!r}"}
    errors = [payload["error"] for payload in payloads if "error" in payload]
    if errors:
        clean = len(errors) == 1 and "error" in payloads[-1]
        return {"how": "error" if clean else "cut", "code": errors[0]["code"], "detail": errors[0]["message"]}
    choices = [choice for payload in payloads for choice in payload["choices"]]
    reasons = [choice["index"] for choice in choices if choice["finish_reason"] is not None]
    if sorted(reasons) != sorted({choice["index"] for choice in choices}):
        return {"how": "cut", "detail": f"its choices {reasons} ended"}
    text = "".join(_text(choice) for choice in choices)
    return {"how": "complete", "text": text}


def _text(choice: Mapping[str, Any]) -> str:
    """Of a choice of a completion, of a chat, or of a chunk of either."""
    text = (
        choice["text"] if "text" in choice else choice.get("message", choice.get("delta", {})).get("content")
    )
    return text or ""


class Crowd:
    """Clients that ask at the same time, each on a thread; every other one streams."""

    def __init__(self, port: int, count: int, body: Mapping[str, Any], seconds: float = DEADLINE) -> None:
        self.endings: list[Ending] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(port, dict(body) | {"stream": number % 2 == 0}, seconds))
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, port: int, body: Mapping[str, Any], seconds: float) -> None:
        self.endings.append(ask(port, body, seconds=seconds))

    def join(self) -> list[Ending]:
        for thread in self._threads:
            thread.join()
        return self.endings


def serve_again(port: int, body: Mapping[str, Any], patience: float = 60.0) -> int:
    """Ask again and again until an answer is whole; how often it was asked."""
    until = time.monotonic() + patience
    attempts = 1
    while (ending := ask(port, body)).how != "complete":
        assert time.monotonic() < until, f"it serves nobody: {ending}"
        attempts += 1
        time.sleep(0.02)
    return attempts


# -- clients that do not play by the rules ---------------------------------------------------------------


def request_bytes(body: Mapping[str, Any], path: str = "/v1/completions", head: str = "") -> bytes:
    data = json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(data)}\r\n\r\n"
    return lines.encode() + data


@contextmanager
def connections(server: RunningServer, count: int, *, receive: int = 0) -> Iterator[list[socket.socket]]:
    """Open sockets; `receive` is how many bytes the kernel may take in for each."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            connection = socket.socket()
            opened.append(connection)
            if receive:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            connection.settimeout(DEADLINE)
            connection.connect(("127.0.0.1", server.port))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def reset(connection: socket.socket) -> None:
    """Leave without a farewell: the server gets a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.01)

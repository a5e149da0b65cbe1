"""Names of models that are paths, and what malformed requests leave in the log."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from ..running_server import RunningServer, running_server


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("names") / "log"
    with running_server(log, MODEL=str(tiny_path), ENGINE_SLOTS="2", LOG_FORMAT="json") as server:
        yield server.wait_ready()


def test_a_model_named_by_its_absolute_path_is_found(server: RunningServer, tiny_path: Path) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        (listed,) = client.models.list().data
        assert listed.id == str(tiny_path)
        assert client.models.retrieve(listed.id).id == listed.id


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/completions?prompt=my secret text HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer sk-secret\r\n\r\n",
    ],
)
def test_what_cannot_be_read_is_not_quoted_in_the_log(server: RunningServer, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_bytes)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    log = server.log.read_text()
    assert "it could not be read" in log
    assert "secret" not in log

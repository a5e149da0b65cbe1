"""How soon a client that leaves is noticed, in milliseconds: on a model whose steps take a few."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny

LONG: dict[str, Any] = {"prompt": [5], "max_tokens": 7000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, so that a second request waits; one token a step, so that a long prompt is long read."""
    directory = tmp_path_factory.mktemp("departures")
    model = save_tiny(directory / "model", eos=None, max_position_embeddings=8192)
    with running_server(
        directory / "log", MODEL=str(model), ENGINE_SLOTS="1", ENGINE_TOKEN_BUDGET="1"
    ) as server:
        yield server.wait_ready()


def send(server: RunningServer, fields: dict[str, Any]) -> socket.socket:
    body = json.dumps(fields).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return connection


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decoding"])
def test_a_departure_is_noticed_within_50_milliseconds(
    server: RunningServer, phase: str, stream: bool
) -> None:
    fields = LONG | {"stream": stream} | ({"prompt": [5] * 1000} if phase == "prefill" else {})
    holder = send(server, LONG | {"stream": True}) if phase == "queued" else None
    others = 0 if holder is None else 1
    if holder is not None:
        server.wait_for(lambda health: health["replicas"][0]["stats"]["running"] == 1)
    times = []
    for _ in range(5):
        client = send(server, fields)
        server.wait_for(lambda health: health["outstanding"] == others + 1)
        time.sleep(0.1)
        left = time.monotonic()
        client.close()
        server.wait_for(lambda health: health["outstanding"] == others)
        times.append(time.monotonic() - left)
    if holder is not None:
        holder.close()
        server.wait_for(lambda health: health["outstanding"] == 0)
    print(f"{phase}: {statistics.median(times) * 1000:.0f} ms, at most {max(times) * 1000:.0f} ms")
    assert statistics.median(times) < 0.05

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from basaran_ops.server.access import ApiKeys
from basaran_ops.settings import Settings

from ..running_server import RunningServer, running_server
from .test_api import error

ORIGIN = {"Origin": "https://page.example"}


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("access")
    (directory / "keys").write_text("filed-key\n\n")
    with running_server(
        directory / "log",
        MODEL=str(tiny_path),
        ENGINE_SLOTS="2",
        SERVER_MODEL_NAME="org/tiny",
        SERVER_STRICT_MODEL="true",
        SERVER_API_KEYS="given-key, other-key",
        SERVER_API_KEYS_FILE=str(directory / "keys"),
        SERVER_CORS_ORIGINS="https://page.example",
    ) as server:
        yield server.wait_ready()


def with_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["given-key", "other-key", "filed-key"])
def test_each_key_opens(server: RunningServer, key: str) -> None:
    assert server.http.get("/v1/models", headers=with_key(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        with_key("given"),
        with_key("given-key2"),
        with_key("schlüssel"),
        {"Authorization": "given-key"},
    ],
    ids=str,
)
def test_anything_else_is_401(server: RunningServer, headers: dict[str, str]) -> None:
    sent = {name: value.encode() for name, value in headers.items()}
    for response in (
        server.http.get("/v1/models", headers=sent),
        server.http.post("/v1/completions", headers=sent, json={"prompt": "x"}),
    ):
        assert error(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key(server: RunningServer) -> None:
    assert server.http.get("/health").status_code == 200


def test_another_models_name_is_404_where_names_are_strict(server: RunningServer) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    headers = with_key("given-key")
    refused = server.http.post("/v1/completions", headers=headers, json=body | {"model": "gpt-4"})
    assert error(refused, 404)["code"] == "model_not_found"
    for names in ({"model": "org/tiny"}, {}):
        assert server.http.post("/v1/completions", headers=headers, json=body | names).status_code == 200


def test_a_page_of_an_allowed_origin_may_call(server: RunningServer) -> None:
    preflight = server.http.options(
        "/v1/completions",
        headers=ORIGIN
        | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"},
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    called = server.http.get("/v1/models", headers=ORIGIN | with_key("given-key"))
    assert called.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    # An error must be readable too, or the page sees only that something failed.
    assert "access-control-allow-origin" in server.http.get("/v1/models", headers=ORIGIN).headers


def test_who_has_no_key_is_told_before_the_body_is_awaited(server: RunningServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n%b\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as stranger:
        stranger.sendall(head % b"Authorization: Bearer wrong\r\n")
        assert stranger.recv(65536).startswith(b"HTTP/1.1 401 ")
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as friend:
        friend.sendall(head % b"Authorization: Bearer given-key\r\n")
        with pytest.raises(TimeoutError):
            friend.recv(65536)


def test_a_page_of_another_origin_may_not(server: RunningServer) -> None:
    response = server.http.get("/health", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_changed_file_of_keys_counts_at_once_and_a_vanished_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("old")
    keys = ApiKeys(Settings(server_api_keys_file=str(path)))
    assert keys.accepts("old")
    path.write_text("newer\n")
    assert keys.accepts("newer")
    assert not keys.accepts("old")
    # As Kubernetes does it: a link that changes its target.
    (tmp_path / "next").write_text("third")
    (tmp_path / "next").replace(path)
    assert keys.accepts("third")
    path.unlink()
    assert keys.accepts("third")


def test_an_empty_file_of_keys_locks_everybody_out(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    keys = ApiKeys(Settings(server_api_keys_file=str(tmp_path / "keys")))
    assert keys.required
    assert not keys.accepts("")


def test_a_file_of_keys_that_cannot_be_read_is_a_fault_at_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="keys"):
        ApiKeys(Settings(server_api_keys_file=str(tmp_path / "keys")))

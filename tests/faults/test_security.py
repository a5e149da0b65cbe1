"""What SECURITY.md promises and no other test holds; and that each of its promises has a test."""

from __future__ import annotations

import hmac
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flask import Flask

from basaran_ops.server import access
from basaran_ops.server.access import ApiKeys
from basaran_ops.settings import Settings
from basaran_ops.text.chat_template import ChatTemplate
from basaran_ops.text.tokenizer import Tokenizer

from ..running_server import RunningServer, running_server
from ..test_docs import names_of_tests
from .clients import connections, eventually, request_bytes
from .conftest import SMALL
from .shim_settings import COUNTING

ROOT = Path(__file__).parents[2]
KEY = "sk-of-a-tenant"
CONNECTIONS = 40
FORGED = '{"event": "forged", "level": "error"}'


@pytest.fixture(scope="module", params=["json", "console"])
def server(
    request: pytest.FixtureRequest, roomy_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Logs all that it can: everything, text included."""
    settings = SMALL | COUNTING | {"MODEL": str(roomy_path), "SERVER_API_KEYS": f"{KEY},another"}
    own = {"LOG_FORMAT": request.param, "LOG_LEVEL": "debug", "LOG_PROMPTS": "true"}
    own["SERVER_CONNECTION_LIMIT"] = str(CONNECTIONS)
    with running_server(tmp_path_factory.mktemp("security") / "log", **settings | own) as server:
        yield server.wait_ready()


def exchange(server: RunningServer, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def closing(*lines: str) -> str:
    return "".join(f"{line}\r\n" for line in ("Connection: close", f"Authorization: Bearer {KEY}", *lines))


HOSTILE = f"x\n{FORGED}\r\n{FORGED}\x1b[2J\x00\u2028\x85"


def test_text_of_clients_makes_no_line_of_the_log(server: RunningServer) -> None:
    """Newlines, escapes of terminals and whole lines of JSON, wherever a client may put some."""
    fields = {"model": HOSTILE, "user": HOSTILE, "prompt": HOSTILE, "stop": [HOSTILE], "max_tokens": 3}
    head, _ = exchange(server, request_bytes(fields, head=closing("x-request-id: mine")))
    assert head.startswith(b"HTTP/1.1 200")
    exchange(server, request_bytes(fields | {"n": HOSTILE}, head=closing(f"x-request-id: {FORGED}")))
    exchange(
        server, f"GET /%0a{FORGED.replace(' ', '')}%0d%0a HTTP/1.1\r\nHost: x\r\n{closing()}\r\n".encode()
    )
    exchange(server, f"GET /\n{FORGED} HTTP/1.1\r\nHost: x\r\n{closing()}\r\n".encode())
    eventually(lambda: server.log.read_text().count("request ended") >= 1)
    log = server.log.read_bytes().decode()
    assert "forged" in log, "nothing was tried: prompts are logged here"
    for line in log.split("\n"):
        assert not line.startswith(FORGED)
        if line.startswith("{"):
            assert json.loads(line)["event"] != "forged"
    assert not set("\x1b\x00\u2028\x85\r") & set(log)


@pytest.mark.parametrize(
    "sent",
    [
        b"a\rSet-Cookie: x=1",
        b"a\nSet-Cookie: x=1",
        b"a\r\n Set-Cookie: x=1",
        b"a\x00b",
        b"\x85\x1b[2J",
        b"x" * 129,
    ],
    ids=["carriage return", "line feed", "folded", "null", "controls", "long"],
)
def test_an_id_of_a_request_brings_no_header_into_the_answer(server: RunningServer, sent: bytes) -> None:
    head, _ = exchange(
        server, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-request-id: " + sent + b"\r\n\r\n"
    )
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert b"set-cookie" not in names
    (told,) = re.findall(rb"\r\nx-request-id: ([^\r\n]*)", head)
    assert re.fullmatch(rb"[!-~]{1,128}", told)
    assert told != sent


def test_neither_keys_nor_what_was_sent_for_one_are_logged_or_told(server: RunningServer) -> None:
    wrong = "sk-guessed-by-a-stranger"
    for key, status in ((KEY, 200), (wrong, 401)):
        answer = server.http.post(
            "/v1/completions",
            json={"prompt": "x", "max_tokens": 1},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == status
        assert key not in answer.text
    told = [httpx.get(server.management_url + path).text for path in ("/state", "/metrics", "/livez")]
    told += [server.http.get(path).text for path in ("/health", "/openapi.json")]
    for text in (*told, server.log.read_text()):
        assert KEY not in text
        assert wrong not in text


def test_without_origins_no_page_of_another_site_may_read_an_answer(server: RunningServer) -> None:
    for origin in ("https://page.example", "null", server.url):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for answer in (
            server.http.options("/v1/completions", headers=asked),
            server.http.get("/health", headers=asked),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_connections_that_are_kept_lock_nobody_out(server: RunningServer) -> None:
    """Each was answered, without a key, and may be used again: that is no reason to hold others up."""
    with connections(server, CONNECTIONS + 5) as kept:
        for connection in kept[:CONNECTIONS]:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        started = time.monotonic()
        head, _ = exchange(server, request_bytes({"prompt": [5], "max_tokens": 1}, head=closing()))
        assert head.startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started < 4


def test_each_key_is_compared_whole_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(sent: bytes, known: bytes) -> bool:
        compared.append(known)
        return sent == known

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = ApiKeys(Settings(server_api_keys="first,second,third"))
    for sent, accepted in (("first", True), ("third", True), ("none", False)):
        compared.clear()
        assert keys.accepts(sent) is accepted
        assert compared == [b"first", b"second", b"third"]


def app_for(origins: str) -> Flask:
    app = Flask(__name__)
    access.install(app, Settings(server_cors_origins=origins))
    app.get("/")(lambda: "x")
    return app


@pytest.mark.parametrize(
    "origin",
    [
        "https://page.example.evil.example",
        "https://page.example:444",
        "http://page.example",
        "null",
        "https://PAGE.example",
    ],
)
def test_an_origin_is_allowed_as_a_whole_or_not_at_all(origin: str) -> None:
    app = app_for("https://page.example")
    client = app.test_client()
    assert (
        "Access-Control-Allow-Origin" in client.get("/", headers={"Origin": "https://page.example"}).headers
    )
    assert "Access-Control-Allow-Origin" not in client.get("/", headers={"Origin": origin}).headers


def test_an_open_api_never_allows_credentials() -> None:
    app = app_for("*")
    headers = app.test_client().get("/", headers={"Origin": "https://any.example"}).headers
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ lipsum.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ],
    ids=["changes what it is given", "globals", "globals of a helper", "files"],
)
def test_a_template_reaches_nothing_but_its_messages(roomy_path: Path, template: str) -> None:
    chat = ChatTemplate(Tokenizer.load(str(roomy_path)), template)
    with pytest.raises(ValueError, match="the chat template cannot render these messages"):
        chat.encode(
            [{"role": "user", "content": "x"}],
            add_generation_prompt=True,
            continue_final_message=False,
            variables={},
        )


def test_every_test_setting_and_file_that_the_page_names_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 40
    assert named <= names_of_tests()
    settings = set(re.findall(r"`((?:MODEL|SERVER|ENGINE|MANAGEMENT|LOG|COMPLETION)_[A-Z0-9_]+)[`=]", text))
    assert settings <= {name.upper() for name in Settings.model_fields}
    for path in re.findall(r"`((?:tests|basaran_ops|deployments|helm|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path

"""Starting, failing, stopping: the whole server as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ..running_server import RunningServer, free_port, running_server
from ..tiny_models import save_tiny

ROOT = Path(__file__).parents[2]

# Half a minute at least: longer than any test waits for it.
ENDLESS = {"prompt": [5], "max_tokens": 8000, "temperature": 1, "stream": True}


class Client(threading.Thread):
    """Reads one endless stream until it ends; keeps its lines."""

    def __init__(self, server: RunningServer, **fields: object) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.started = threading.Event()
        self.error: httpx.HTTPError | None = None
        self._server = server
        self._fields = ENDLESS | fields
        self.start()
        assert self.started.wait(20), server.log.read_text()

    def run(self) -> None:
        try:
            with httpx.stream(
                "POST", f"{self._server.url}/v1/completions", json=self._fields, timeout=60
            ) as r:
                for line in r.iter_lines():
                    if line:
                        self.lines.append(line)
                        self.started.set()
        except httpx.HTTPError as error:
            self.error = error
            self.started.set()

    def ending(self) -> tuple[dict[str, object], str]:
        """The last two events, once the stream has ended."""
        self.join(30)
        assert self.error is None
        payload: dict[str, object] = json.loads(self.lines[-2].removeprefix("data: "))
        return payload, self.lines[-1]


@pytest.fixture(scope="module")
def patient_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for a long text."""
    return save_tiny(tmp_path_factory.mktemp("patient") / "model", eos=None, max_position_embeddings=8192)


@pytest.fixture
def server(patient_path: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(
        tmp_path / "log", MODEL=str(patient_path), ENGINE_SLOTS="4", SERVER_DRAIN_TIMEOUT="2"
    ) as server:
        yield server.wait_ready()


def test_a_killed_engine_ends_its_streams_with_an_error_and_is_replaced(server: RunningServer) -> None:
    worker = server.processes()[1].pid
    clients = [Client(server) for _ in range(3)]
    engine = server.engine()
    engine.kill()
    for client in clients:
        payload, last = client.ending()
        assert payload["error"] == {
            "message": "the engine died",
            "type": "server_error",
            "param": None,
            "code": "engine_failed",
        }
        assert last == "data: [DONE]"
    health = server.http.get("/health")
    assert (health.status_code, health.json()["ready"]) == (503, False)
    refused = server.complete(prompt="x")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_failed")
    assert int(refused.headers["retry-after"]) > 0
    server.wait_for(lambda health: health["status"] == "ready", 60)
    assert server.complete(prompt="x", max_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert server.processes()[1].pid == worker, "the HTTP process was restarted"
    assert server.engine().pid != engine.pid


def test_a_plain_request_to_a_killed_engine_is_a_500(server: RunningServer) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.complete(**ENDLESS | {"stream": False})))
    asking.start()
    server.wait_for(lambda health: health["replicas"][0]["stats"]["running"] == 1)
    server.engine().kill()
    asking.join(20)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (500, "engine_failed")


def test_sigterm_lets_a_stream_finish_refuses_new_connections_and_leaves_nothing(
    server: RunningServer,
) -> None:
    client = Client(server, prompt=[5], max_tokens=100)
    family = server.processes()
    server.process.send_signal(signal.SIGTERM)
    refused = False
    deadline = time.monotonic() + 1
    while not refused and time.monotonic() < deadline:
        with socket.socket() as probe:
            refused = probe.connect_ex(("127.0.0.1", server.port)) != 0
        time.sleep(0.02)
    assert refused, "new connections are still taken"
    client.ending()
    assert client.lines[-1] == "data: [DONE]"
    assert not any("error" in line for line in client.lines)
    assert server.process.wait(20) == 0
    assert not psutil.wait_procs(family, timeout=5)[1]


def test_at_the_end_of_its_time_a_stream_gets_an_error_event_and_done(server: RunningServer) -> None:
    clients = [Client(server) for _ in range(4)]
    started = time.monotonic()
    assert server.terminate() == 0
    assert 2 <= time.monotonic() - started < 8
    for client in clients:
        payload, last = client.ending()
        assert isinstance(payload["error"], dict)
        assert payload["error"]["code"] == "shutting_down"
        assert last == "data: [DONE]"


def test_the_arbiter_killed_leaves_nothing_alive(server: RunningServer) -> None:
    client = Client(server)
    family = server.processes()
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 4
    with pytest.raises(ConnectionRefusedError):  # noqa: PT012 - until it is refused
        while time.monotonic() < deadline:
            socket.create_connection(("127.0.0.1", server.port)).close()
            time.sleep(0.05)
    assert not psutil.wait_procs(family, timeout=20)[1]
    client.join(10)


@pytest.mark.parametrize("seconds", [0.3, 2.5, 5])
def test_sigterm_while_the_model_loads_leaves_nothing(
    tiny_path: Path, tmp_path: Path, seconds: float
) -> None:
    with running_server(tmp_path / "log", MODEL=str(tiny_path)) as server:
        time.sleep(seconds)
        started = time.monotonic()
        server.terminate()
        assert time.monotonic() - started < 8


def test_sigterm_while_the_model_is_fetched_leaves_nothing_half_made(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", MODEL_CACHE_DIR=str(tmp_path / "cache")) as server:
        server.wait_for(lambda health: "fetching" in health["replicas"][0]["stage"], 60)
        assert server.http.get("/health").status_code == 503
        server.terminate()
    left = [path.name for path in (tmp_path / "cache" / "basaran_ops").iterdir()]
    assert left == ["smollm2-135m-instruct-1.lock"]


def test_before_the_model_is_loaded_requests_get_503_with_retry_after(
    tiny_path: Path, tmp_path: Path
) -> None:
    with running_server(tmp_path / "log", MODEL=str(tiny_path)) as server:
        server.wait_for(lambda health: health["status"] == "loading")
        early = server.complete(prompt="x")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "model_loading")
        assert int(early.headers["retry-after"]) > 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_clear_line(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", MODEL="/no/such/model", LOG_FORMAT="json") as server:
        assert server.process.wait(60) == 3
    errors = [
        json.loads(line)
        for line in server.log.read_text().splitlines()
        if line.startswith("{") and json.loads(line)["level"] == "error"
    ]
    assert errors[0]["event"] == "the model cannot be loaded: MODEL=/no/such/model: no such file or directory"
    assert "Traceback" not in server.log.read_text()


def test_invalid_settings_are_all_told_before_anything_starts(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "basaran_ops"],
        env=os.environ | {"PORT": "http", "ENGINE_SLOTS": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert [line.split("=")[0] for line in result.stderr.splitlines()] == [
        "invalid settings:",
        "ENGINE_SLOTS",
        "PORT",
    ]


def test_a_typing_mistake_in_a_variable_is_warned_of(tiny_path: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", MODEL=str(tiny_path), ENGINE_SLOT="4") as server:
        server.wait_for(lambda health: True)
        assert "ENGINE_SLOT is not a setting; did you mean ENGINE_SLOTS?" in server.log.read_text()


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sys.executable).parent / "basaran-ops")],
        [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")],
    ],
    ids=["console script", "gunicorn.conf.py"],
)
def test_there_are_other_ways_to_start(command: list[str], tiny_path: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", command, MODEL=str(tiny_path)) as server:
        server.wait_ready()
        assert server.complete(prompt="x", max_tokens=2).status_code == 200


def test_two_replicas_share_the_work(tiny_path: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path / "log", MODEL=str(tiny_path), ENGINE_REPLICAS="2", ENGINE_SLOTS="2"
    ) as server:
        server.wait_for(lambda h: [r["state"] for r in h["replicas"]] == ["ready", "ready"], 90)
        server.complete(prompt=[[5]] * 8, max_tokens=50)
        assert all(replica["stats"]["step"] >= 50 for replica in server.health()["replicas"])


def test_no_torch_and_no_control_socket_in_the_servers_process(server: RunningServer) -> None:
    worker = server.processes()[1]
    maps = {Path(m.path).name for m in worker.memory_maps()}
    assert not [name for name in maps if "torch" in name]
    listening = [
        c for p in server.processes() for c in p.net_connections("unix") if c.raddr == "" and c.laddr
    ]
    assert not [c for c in listening if "gunicorn" in c.laddr]


def test_a_port_in_use_ends_the_server(tiny_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        environ = os.environ | {"HOST": "127.0.0.1", "PORT": str(port), "MODEL": str(tiny_path)}
        result = subprocess.run(
            [sys.executable, "-m", "basaran_ops"], env=environ, capture_output=True, text=True, check=False
        )
        assert result.returncode != 0
        assert "in use" in result.stderr


def test_a_stopped_engine_does_not_outlive_the_server(server: RunningServer) -> None:
    client = Client(server)
    server.engine().suspend()
    started = time.monotonic()
    server.terminate()
    assert time.monotonic() - started < 2 + 5
    payload, _ = client.ending()
    assert "error" in payload

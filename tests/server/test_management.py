"""The management port of a real server with a tiny model."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import MagicMock

import httpx
import psutil
import pytest

from basaran_ops.outputs import EngineStats
from basaran_ops.pool import PoolStatus, ReplicaStatus
from basaran_ops.server.management import (
    CLIENT_SECONDS,
    MOST_CONNECTIONS,
    MOST_DRAINS,
    create_app,
    unhealthy,
)

from ..running_server import RunningServer, running_server
from ..scrape import Scrape


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        tmp_path_factory.mktemp("management") / "log",
        MODEL=str(tiny_path),
        SERVER_MODEL_NAME="org/tiny",
        SERVER_API_KEYS="the-key",
        SERVER_QUEUE_LIMIT="3",
        ENGINE_SLOTS="2",
    ) as server:
        yield server.wait_ready()


def get(server: RunningServer, path: str) -> httpx.Response:
    return httpx.get(server.management_url + path, timeout=30)


def test_probes_need_no_key_and_say_yes(server: RunningServer) -> None:
    assert get(server, "/livez").json() == {"alive": True, "reasons": []}
    assert get(server, "/readyz").json() == {"ready": True, "state": "ready"}
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_the_api_port_has_no_metrics_and_the_management_port_no_api(server: RunningServer) -> None:
    headers = {"Authorization": "Bearer the-key"}
    for path in ("/metrics", "/livez", "/readyz", "/drain", "/state"):
        assert httpx.get(server.url + path, headers=headers).status_code == 404
    assert get(server, "/v1/models").status_code == 404


def test_promtool_finds_nothing_wrong_with_the_metrics(server: RunningServer) -> None:
    text = get(server, "/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text.content, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr + checked.stdout) == (0, b"")


def test_every_series_is_there_from_the_start(server: RunningServer) -> None:
    scrape = Scrape.of(server)
    assert {"stop", "length", "abort", "error", "timeout", "tool_calls"} == {
        sample.labels["finished_reason"] for sample in scrape.families["basaran_requests"].samples
    }
    assert len(scrape.families["basaran_requests_rejected"].samples) == 7
    assert scrape.value("engine_state", state="ready") == 1
    assert scrape.value("engine_state") == 1, "one state at a time"
    assert (scrape.value("pool_slots"), scrape.value("queue_capacity")) == (2, 3)
    assert scrape.value("model_info", model_name="org/tiny", runner="packed", device="cpu") == 1
    assert scrape.value("model_load_seconds") > 0
    assert scrape.value("replica_up", replica="0") == 1
    assert (
        0
        < scrape.value("device_memory_bytes", kind="used")
        < scrape.value("device_memory_bytes", kind="total")
    )
    assert "_created" not in scrape.text
    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        # Gateways read one series of each.
        assert len(scrape.families[f"basaran_{name}"].samples) == 1


def test_the_state_is_told_for_people(server: RunningServer) -> None:
    state = get(server, "/state").json()
    assert (state["state"], state["model"], state["slots"], state["running"]) == ("ready", "org/tiny", 2, 0)
    assert state["versions"]["gunicorn"].startswith("27.")
    assert state["info"]["runner"] == "packed"
    assert state["replicas"][0]["device"] == "cpu"
    assert state["oldest_waiting_seconds"] == 0


def test_the_oldest_waiting_request_is_told_while_it_waits(server: RunningServer) -> None:
    def stream() -> None:
        body = {"prompt": "x", "max_tokens": 400, "n": 4, "stream": True}
        headers = {"Authorization": "Bearer the-key"}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers) as response:
            for _ in response.iter_lines():
                if done.is_set():
                    return

    done = threading.Event()
    threads = [threading.Thread(target=stream) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 10
        while (state := get(server, "/state").json())["oldest_waiting_seconds"] < 0.05:
            assert time.monotonic() < deadline, state
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert state["running"] + state["waiting"] > 2
    server.wait_for(lambda health: health["outstanding"] == 0)


@pytest.mark.parametrize("delay", ["x", "-1", "nan", "999999"])
def test_a_delay_that_is_none_drains_nothing(server: RunningServer, delay: str) -> None:
    refused = get(server, f"/drain?delay={delay}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "delay"
    assert get(server, "/readyz").status_code == 200


@pytest.mark.parametrize("header", [{"Origin": "https://page.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_in_a_browser_drains_nothing(server: RunningServer, header: dict[str, str]) -> None:
    assert httpx.get(f"{server.management_url}/drain", headers=header).status_code == 400
    assert get(server, "/readyz").status_code == 200


def test_silent_and_dripping_clients_of_the_port_hold_up_nobody(server: RunningServer) -> None:
    worker = psutil.Process(server.process.pid).children()[0]
    before = worker.num_threads(), worker.num_fds()
    with ExitStack() as stack:
        address = ("127.0.0.1", server.management_port)
        for number in range(500):
            silent = stack.enter_context(socket.create_connection(address))
            if number % 100 == 0:
                assert time_of(server, "/livez") < 1
        dripping = stack.enter_context(socket.create_connection(address))
        dripping.sendall(b"GET /readyz HTTP/1.1\r\n")
        most = MOST_CONNECTIONS + 4
        until = time.monotonic() + CLIENT_SECONDS + 2
        with suppress(ConnectionError):  # once it has been ended
            while True:
                assert time.monotonic() < until, "it may drip on"
                assert worker.num_threads() <= before[0] + most
                assert worker.num_fds() <= before[1] + most
                assert time_of(server, "/readyz") < 1
                time.sleep(0.5)
                dripping.sendall(b"X-Drop: 1\r\n")
        silent.settimeout(1)
        assert silent.recv(1) == b""
        # All gave way to others or to their deadline, and nothing of them is kept.
        assert (worker.num_threads(), worker.num_fds()) <= (before[0] + 1, before[1] + 1)


def time_of(server: RunningServer, path: str) -> float:
    """Seconds until its 200."""
    started = time.monotonic()
    assert get(server, path).status_code == 200
    return time.monotonic() - started


def replica(**changes: object) -> ReplicaStatus:
    fields: dict[str, object] = {
        "number": 0,
        "state": "ready",
        "stage": "ready",
        "restarts": 0,
        "stats": EngineStats(),
        "device": "cpu",
        "last_step_at": 0.0,
        "step_age": 0.0,
        "lost": False,
    }
    return ReplicaStatus(**fields | changes)  # type: ignore[arg-type]


def status(*replicas: ReplicaStatus) -> PoolStatus:
    return PoolStatus(False, True, 5, 5, 99.0, replicas)


def test_only_what_a_restart_can_help_makes_the_server_unhealthy() -> None:
    # Loading, draining, busy, idle for ever, one death: none of these.
    assert unhealthy(status(replica(state="loading"), replica(state="failed", restarts=3)), 120) == []
    assert unhealthy(status(replica(step_age=119)), 120) == []
    assert unhealthy(status(replica(step_age=1e9)), 0) == []
    assert unhealthy(status(replica(step_age=121)), 120) == ["engine 0 has done no step for 121 s"]
    (reason,) = unhealthy(status(replica(), replica(number=1, lost=True, stage="the engine died")), 120)
    assert reason == "engine 1 dies again and again: the engine died"


def test_draining_refuses_at_once_and_answers_after_its_delay(tiny_path: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", MODEL=str(tiny_path), ENGINE_SLOTS="2") as server:
        server.wait_ready()
        answers: list[tuple[float, httpx.Response]] = []

        def ask() -> None:
            started = time.monotonic()
            response = get(server, "/drain?delay=1.5")
            answers.append((time.monotonic() - started, response))

        thread = threading.Thread(target=ask)
        thread.start()
        deadline = time.monotonic() + 1
        while get(server, "/readyz").status_code == 200:
            assert time.monotonic() < deadline
        refused = server.complete(prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) > 0
        assert get(server, "/livez").status_code == 200
        assert Scrape.of(server).value("engine_state", state="draining") == 1
        assert Scrape.of(server).value("requests_rejected_total", reason="draining") == 1
        assert not answers, "it answered before its delay"
        thread.join()
        assert answers[0][0] >= 1.5
        assert answers[0][1].json() == {"draining": True}


def test_only_so_many_wait_for_the_end_of_draining() -> None:
    waits = threading.Semaphore(0)

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.release()
            return super().wait(timeout)

    stopping = Stopping()
    client = create_app(MagicMock(), stopping).test_client

    def drain(delay: str) -> int:
        return client().get(f"/drain?delay={delay}").status_code

    with ThreadPoolExecutor(MOST_DRAINS) as threads:
        answers = [threads.submit(drain, "60") for _ in range(MOST_DRAINS)]
        assert all(waits.acquire(timeout=10) for _ in answers)
        assert (drain("60"), drain("0")) == (429, 200)
        stopping.set()
        assert {answer.result() for answer in answers} == {200}
    assert drain("0.01") == 200


def test_a_management_port_that_is_taken_ends_the_server(tiny_path: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running_server(tmp_path / "log", MODEL=str(tiny_path), MANAGEMENT_PORT=str(port)) as server:
            assert server.process.wait(30) == 3
            log = server.log.read_text()
    assert f"MANAGEMENT_PORT={port}: " in log
    assert "Traceback" not in log


def test_vllms_names_are_told_too_where_that_is_asked_for(tiny_path: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path / "log",
        MODEL=str(tiny_path),
        ENGINE_SLOTS="2",
        MANAGEMENT_VLLM_ALIASES="true",
    ) as server:
        server.wait_ready()
        server.complete(prompt="x", max_tokens=3)
        scrape = Scrape.of(server)
        ours, theirs = (
            scrape.families[f"{prefix}generation_tokens"].samples[0].value for prefix in ("basaran_", "vllm:")
        )
        assert ours == theirs == 3
        assert "vllm:num_requests_waiting" in scrape.families
        assert "vllm:pool_slots" not in scrape.families

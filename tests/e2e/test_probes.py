"""What each probe says of a server that loads, is full, drains, and whose engines die, hang and die again."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ..running_server import RunningServer, running_server
from ..scrape import Scrape

TABLE: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    print("\n".join(["| | /livez | /readyz | a request |", "| --- | --- | --- | --- |", *TABLE]))


@contextmanager
def serving(tiny_path: Path, tmp_path: Path, **settings: str) -> Iterator[RunningServer]:
    small = {"MODEL": str(tiny_path), "ENGINE_SLOTS": "4", "MODEL_DTYPE": "float32"}
    with running_server(tmp_path / "log", **small | settings) as server:
        yield server


def probe(server: RunningServer, path: str) -> int:
    return httpx.get(server.management_url + path, timeout=30).status_code


def says(server: RunningServer, when: str) -> tuple[int, int, int]:
    """What the probes and a request get, told in the table too."""
    codes = probe(server, "/livez"), probe(server, "/readyz"), server.complete(max_tokens=1).status_code
    TABLE.append(f"| {when} | {' | '.join(map(str, codes))} |")
    return codes


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> float:
    """How long it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, "it never came to that"
        time.sleep(0.05)
    return time.monotonic() - started


def answers(server: RunningServer) -> bool:
    try:
        return probe(server, "/livez") == 200
    except httpx.TransportError:
        return False


@contextmanager
def streams(server: RunningServer, count: int) -> Iterator[None]:
    """So many streams that go on until the end of the block."""
    over = threading.Event()

    def stream() -> None:
        body = {"prompt": "x", "max_tokens": 500, "stream": True}
        while not over.is_set():
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
                for _ in response.iter_lines():
                    if over.is_set():
                        break

    threads = [threading.Thread(target=stream) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_while_loading_it_lives_and_is_not_ready(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path) as server:
        wait_until(lambda: answers(server))
        assert says(server, "loading") == (200, 503, 503)
        server.wait_ready()
        assert says(server, "ready, idle") == (200, 200, 200)


def test_a_full_server_is_ready_and_its_probes_answer_in_time(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path, SERVER_QUEUE_LIMIT="12") as server:
        server.wait_ready()
        with streams(server, 16):
            server.wait_for(lambda health: health["outstanding"] == 16)
            assert says(server, "all slots and the queue full") == (200, 200, 429)
            for path in ("/livez", "/readyz", "/metrics", "/state"):
                times = []
                # One client: to make one takes httpx as long as ten answers.
                with httpx.Client(base_url=server.management_url) as http:
                    for _ in range(100):
                        started = time.monotonic()
                        assert http.get(path).status_code == 200
                        times.append(time.monotonic() - started)
                        time.sleep(0.01)
                p99 = statistics.quantiles(times, n=100)[98]
                print(f"{path}: median {statistics.median(times) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
                assert p99 < 0.1


def test_draining_it_lives_and_is_not_ready(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path) as server:
        server.wait_ready()
        probe(server, "/drain")
        assert says(server, "draining") == (200, 503, 503)


def test_a_dead_engine_is_replaced_while_the_server_lives(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path) as server:
        server.wait_ready()
        server.engine().kill()
        wait_until(lambda: probe(server, "/readyz") == 503)
        assert says(server, "engine killed") == (200, 503, 503)
        took = wait_until(lambda: probe(server, "/readyz") == 200)
        assert says(server, "engine replaced") == (200, 200, 200)
        assert Scrape.of(server).value("replica_restarts_total") == 1
        print(f"serves again after {took:.1f} s")


def test_an_engine_that_hangs_is_killed_and_replaced(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path, ENGINE_STALL_TIMEOUT="2") as server:
        server.wait_ready()
        failed: list[httpx.Response] = []
        os.kill(server.engine().pid, signal.SIGSTOP)
        time.sleep(2.5)
        assert probe(server, "/livez") == 200, "it has no work: it is not known to hang"
        asking = threading.Thread(target=lambda: failed.append(server.complete(max_tokens=5)))
        asking.start()
        wait_until(lambda: Scrape.of(server).value("replica_step_age_seconds") > 1)
        asking.join(timeout=15)
        assert failed[0].status_code == 500
        assert "has done no step for" in failed[0].json()["error"]["message"]
        assert says(server, "hanging engine killed") == (200, 503, 503)
        wait_until(lambda: probe(server, "/readyz") == 200)
        assert says(server, "hanging engine replaced") == (200, 200, 200)


def test_an_engine_that_hangs_for_good_makes_the_server_unhealthy(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tiny_path, tmp_path, ENGINE_STALL_TIMEOUT="0", SERVER_REQUEST_TIMEOUT="2") as server:
        server.wait_ready()
        engine = server.engine()
        os.kill(engine.pid, signal.SIGSTOP)
        late = server.complete(max_tokens=5)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "request_timeout")
        os.kill(engine.pid, signal.SIGCONT)
        server.wait_for(lambda health: health["outstanding"] == 0)
        assert says(server, "hanging engine that goes on") == (200, 200, 200)


def test_an_engine_that_dies_again_and_again_makes_the_server_unhealthy(
    tiny_path: Path, tmp_path: Path
) -> None:
    with serving(tiny_path, tmp_path) as server:
        server.wait_ready()
        for _ in range(5):
            assert probe(server, "/livez") == 200
            wait_until(lambda: probe(server, "/readyz") == 200)
            server.engine().kill()
            wait_until(lambda: probe(server, "/readyz") == 503)
        assert says(server, "engine dead five times in a row") == (503, 503, 503)
        reasons = httpx.get(f"{server.management_url}/livez").json()["reasons"]
        assert reasons == ["engine 0 dies again and again: the engine died"]

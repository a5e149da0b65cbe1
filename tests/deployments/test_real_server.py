"""A real Prometheus scrapes the real server: panels have answers under load, alerts when things fail."""

from __future__ import annotations

import math
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx
import psutil
import pytest

from ..running_server import RunningServer, free_port, running_server
from ..scrape import Scrape
from ..tiny_models import save_tiny
from .cluster import Cluster, cluster
from .grafana import PANELS, queries
from .metric_families import PROCESS, SERVER
from .prometheus import Prometheus, running_prometheus
from .promtool import alerts

MIB = 2**20


class Watcher:
    """Asks for every alert's expression again and again, and remembers which had an answer."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.seen: set[str] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.3):
            for name, rule in alerts().items():
                if name not in self.seen and self.prometheus.ask(rule["expr"]):
                    self.seen.add(name)

    def wait_for(self, *names: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not self.seen.issuperset(names):
            assert time.monotonic() < deadline, f"{set(names) - self.seen} had no answer"
            time.sleep(0.1)

    def close(self) -> None:
        self.over.set()
        self.thread.join()


class Load:
    """Clients of all kinds, until stopped."""

    def __init__(self, server: RunningServer, clients: int) -> None:
        self.server = server
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def _run(self, number: int) -> None:
        random = Random(number)
        with httpx.Client(base_url=self.server.url, timeout=60) as http:
            while not self.over.is_set():
                # Long prompts, so that the cache fills.
                body = {"prompt": [random.randrange(2, 300) for _ in range(470)], "max_tokens": 40}
                if number % 4 == 0:
                    # Something that repeats itself, so that the next tokens are guessed.
                    body |= {"prompt": [2, 3, 4, 5, 6] * 94, "temperature": 0}
                leaves = random.random() < 0.5
                with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
                    for _ in response.iter_lines():
                        if leaves or self.over.is_set():
                            break
                if response.status_code != 200:
                    time.sleep(0.05)

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


@contextmanager
def watched_server(
    tiny_path: Path, directory: Path, other_port: int, cluster_port: int
) -> Iterator[tuple[RunningServer, Prometheus, Watcher]]:
    """Prometheus is there before the server, and sees it come; it scrapes another port too."""
    server = None
    settings = {
        "MODEL": str(tiny_path),
        "MODEL_DTYPE": "float32",
        "SERVER_MODEL_NAME": "org/tiny",
        "SERVER_QUEUE_LIMIT": "8",
        "ENGINE_SLOTS": "6",
        "ENGINE_REPLICAS": "2",
        "ENGINE_PREFIX_CACHE": "true",
    }
    port = free_port()
    with running_prometheus(directory, [port, other_port], [cluster_port]) as prometheus:
        prometheus.wait_for('up{job="basaran_ops"} == 0')
        watcher = Watcher(prometheus)
        try:
            watcher.wait_for("BasaranDown")
            server = RunningServer(directory / "log", MANAGEMENT_PORT=str(port), **settings)
            server.management_url = f"http://127.0.0.1:{port}"
            watcher.wait_for("BasaranStuckLoading")
            server.wait_for(lambda health: all(r["state"] == "ready" for r in health["replicas"]), 60)
            yield server, prometheus, watcher
        finally:
            watcher.close()
            if server is not None:
                server.close()


@contextmanager
def troubled_server(directory: Path, port: int) -> Iterator[RunningServer]:
    """Another model's server, whose prompts may be long and whose engine is never replaced."""
    model = save_tiny(directory / "model", eos=None, max_position_embeddings=16384)
    with running_server(
        directory / "log",
        MODEL=str(model),
        MODEL_DTYPE="float32",
        SERVER_MODEL_NAME="org/troubled",
        ENGINE_SLOTS="2",
        ENGINE_TOKEN_BUDGET="8192",
        ENGINE_STALL_TIMEOUT="0",
        MANAGEMENT_PORT=str(port),
    ) as server:
        yield server.wait_ready()


@contextmanager
def stopped_engine(server: RunningServer) -> Iterator[None]:
    """Stop the engine in the midst of a stream."""
    engine = server.engine()
    body = {"prompt": "x", "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=10) as response:
        lines = response.iter_lines()
        next(lines)
        engine.suspend()
        try:
            yield
        finally:
            engine.resume()


def data_of(process: psutil.Process) -> int:
    """Bytes of what the kernel holds against RLIMIT_DATA."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def engines(server: RunningServer) -> list[psutil.Process]:
    found = [p for p in server.processes() if "basaran_ops.engine_process" in p.cmdline()]
    return sorted(found, key=lambda process: process.create_time())


def all_ready(server: RunningServer) -> None:
    server.wait_for(lambda health: all(r["state"] == "ready" for r in health["replicas"]), 60)


def at_once(
    server: RunningServer, count: int, max_tokens: int, then: Callable[[], None] = lambda: None
) -> list[int]:
    """Statuses of so many requests sent together; `then` is called while they are answered."""
    body = {"prompt": "x", "max_tokens": max_tokens}
    with httpx.Client(base_url=server.url, timeout=60) as http, ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(http.post, "/v1/completions", json=body) for _ in range(count)]
        then()
        return [each.result().status_code for each in asked]


def kill_busy(server: RunningServer, count: int) -> Callable[[], None]:
    """Kill so many engines once all have work."""

    def kill() -> None:
        server.wait_for(lambda health: health["outstanding"] >= 4)
        # The youngest first: one that is killed again and again is the same replica's.
        for engine in engines(server)[-count:]:
            engine.kill()

    return kill


def slow_motion(server: RunningServer, over: threading.Event) -> None:
    """Stop the engines for three seconds, then let them go a few milliseconds at a time."""
    processes = engines(server)

    def tell(number: int) -> None:
        for process in processes:
            os.kill(process.pid, number)

    tell(signal.SIGSTOP)
    over.wait(3)
    while not over.is_set():
        tell(signal.SIGCONT)
        time.sleep(0.005)
        tell(signal.SIGSTOP)
        time.sleep(1.5)
    tell(signal.SIGCONT)


@pytest.mark.timeout(600)
def test_panels_have_answers_under_load_and_alerts_when_things_fail(tiny_path: Path, tmp_path: Path) -> None:
    # One test: whatever happens to the server leaves its mark in the next stage's rates.
    other_port = free_port()
    (tmp_path / "troubled").mkdir()
    with (
        cluster() as (autoscaler, cluster_port),
        watched_server(tiny_path, tmp_path, other_port, cluster_port) as watched,
        troubled_server(tmp_path / "troubled", other_port) as troubled,
    ):
        an_autoscaler_in_trouble_is_told(autoscaler, watched[2])
        memory_that_runs_out_is_told(troubled, watched[2])
        # That takes two minutes to be told: the other stages' time.
        with stopped_engine(troubled):
            for stage in (
                slow_answers_burn_the_budgets,
                engines_that_die_are_told,
                under_load_every_panel_has_an_answer,
                what_the_rules_know_of_is_what_the_server_tells,
                draining_is_told,
                a_server_that_dies_is_told,
            ):
                stage(*watched)
            watched[2].wait_for("BasaranEngineStalled", seconds=180)
        every_alert_was_seen_here(*watched)


def an_autoscaler_in_trouble_is_told(autoscaler: Cluster, watcher: Watcher) -> None:
    told = {"BasaranAutoscalerAtMaximum", "BasaranAutoscalerFallback"}
    assert not told & watcher.seen
    autoscaler.reach_the_maximum()
    autoscaler.lose_the_metrics()
    watcher.wait_for(*told)


def memory_that_runs_out_is_told(troubled: RunningServer, watcher: Watcher) -> None:
    engine = troubled.engine()
    long = [5] * 8000
    # The kernel gives it one more mebibyte, and a long prompt takes many.
    engine.rlimit(resource.RLIMIT_DATA, (data_of(engine) + MIB, resource.RLIM_INFINITY))
    failed = troubled.complete(prompt=long, max_tokens=2)
    assert failed.status_code == 500
    assert "no memory" in failed.json()["error"]["message"]
    # Nobody else is harmed, and that there is hardly any left is told with each second's step.
    while "BasaranDeviceMemoryHigh" not in watcher.seen:
        assert troubled.complete(prompt="x", max_tokens=2).status_code == 200
        time.sleep(0.5)
    engine.rlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert troubled.complete(prompt=long, max_tokens=2).status_code == 200
    assert troubled.engine().pid == engine.pid
    watcher.wait_for("BasaranDeviceOutOfMemory")


def slow_answers_burn_the_budgets(server: RunningServer, prometheus: Prometheus, watcher: Watcher) -> None:
    over = threading.Event()
    slowing = threading.Thread(target=slow_motion, args=(server, over))
    slowing.start()
    time.sleep(0.2)
    answers = at_once(server, 12, 8)
    over.set()
    slowing.join()
    assert answers == [200] * 12
    watcher.wait_for(
        "BasaranFirstTokenBudgetBurnFast",
        "BasaranFirstTokenBudgetBurnSlow",
        "BasaranTokenBudgetBurnFast",
        "BasaranTokenBudgetBurnSlow",
    )


def under_load_every_panel_has_an_answer(
    server: RunningServer, prometheus: Prometheus, watcher: Watcher
) -> None:
    load = Load(server, 24)
    try:
        watcher.wait_for("BasaranBacklog", "BasaranRejections", "BasaranAbortRate", "BasaranKVCacheFull")
        empty = [
            (panel["title"], query)
            for panel in PANELS
            for query in queries(panel)
            if not answered(lambda query=query: prometheus.ask(query))
        ]
    finally:
        load.close()
    assert empty == []


def answered(ask: Callable[[], list[dict]]) -> bool:
    """Whether there is a number within some seconds: a heatmap needs two scrapes in its interval."""
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        if any(not math.isnan(float(series["value"][1])) for series in ask()):
            return True
        time.sleep(0.3)
    return False


def what_the_rules_know_of_is_what_the_server_tells(
    server: RunningServer, prometheus: Prometheus, watcher: Watcher
) -> None:
    told = {
        name: family for name, family in Scrape.of(server).families.items() if name.startswith("basaran_")
    }
    known = {family.name.removesuffix("_total"): family for family in SERVER}
    assert told.keys() == known.keys()
    for name, family in told.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(known[name].labels), name
        assert family.type == known[name].kind, name
    others = {family.name.removesuffix("_total") for family in PROCESS}
    assert others <= Scrape.of(server).families.keys()


def engines_that_die_are_told(server: RunningServer, prometheus: Prometheus, watcher: Watcher) -> None:
    for _ in range(4):
        all_ready(server)
        assert set(at_once(server, 6, 500, kill_busy(server, 1))) <= {200, 500, 503}
    all_ready(server)
    watcher.wait_for("BasaranReplicaDown", "BasaranEngineRestartLoop")
    for _ in range(2):
        assert 500 in at_once(server, 14, 500, kill_busy(server, 2))
        all_ready(server)
    watcher.wait_for("BasaranNoReadyReplica", "BasaranErrorRatioHigh", "BasaranErrorRatioCritical")


def draining_is_told(server: RunningServer, prometheus: Prometheus, watcher: Watcher) -> None:
    all_ready(server)
    httpx.get(f"{server.management_url}/drain", timeout=10)
    watcher.wait_for("BasaranStuckDraining")


def a_server_that_dies_is_told(server: RunningServer, prometheus: Prometheus, watcher: Watcher) -> None:
    instance = server.management_url.removeprefix("http://")
    started = f'process_start_time_seconds{{instance="{instance}"}}'
    for _ in range(3):
        (series,) = prometheus.ask(started)
        server.processes()[1].kill()
        prometheus.wait_for(f"{started} > {series['value'][1]}")
    watcher.wait_for("BasaranServerRestartLoop")


def every_alert_was_seen_here(server: RunningServer, prometheus: Prometheus, watcher: Watcher) -> None:
    # Before there was anything to scrape.
    absent = prometheus.get("query", query=alerts()["BasaranAbsent"]["expr"], time=str(time.time() - 3600))
    assert absent["result"]
    assert alerts().keys() - watcher.seen == {"BasaranAbsent"}

"""A real Prometheus with our configuration scrapes two servers: every rule and every panel works on that."""

from __future__ import annotations

import math
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from .fake_exposition import exposition, management_port
from .grafana import PANELS, queries
from .metric_families import SERIES
from .promtool import MONITORING, RULES, program, recordings

SECONDS = 30


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> dict:
        answer = httpx.get(f"{self._url}/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query: str) -> list[dict]:
        return self.get("query", query=query)["result"]

    def wait_for(self, query: str) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if self.ask(query):
                    return
            except (httpx.TransportError, ValueError):
                pass  # not up yet
            time.sleep(0.1)
        pytest.fail(f"Prometheus has no answer to {query} after {SECONDS} s")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("prometheus")
    with management_port() as one, management_port() as other, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = directory / "prometheus.yml"
        config.write_text(yaml.safe_dump(impatient([one, other])))
        arguments = {
            "config.file": config,
            "storage.tsdb.path": directory / "data",
            "web.listen-address": f"127.0.0.1:{port}",
            "log.level": "error",
        }
        process = subprocess.Popen(
            [program("prometheus"), *(f"--{name}={value}" for name, value in arguments.items())]
        )
        try:
            server = Prometheus(port)
            # Both servers, three times each, and the recordings after that.
            server.wait_for(f"count(count_over_time(up[{SECONDS}s]) >= 3) == 3")
            server.wait_for("model:basaran_slow_tokens:ratio_rate3d")
            yield server
        finally:
            process.terminate()
            process.wait()


def impatient(ports: list[int]) -> dict:
    """The shipped configuration, with these servers in place of the container and no time to lose."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"]
    target["targets"] = [f"127.0.0.1:{port}" for port in ports]
    # Both have one address; the pods of the real ones differ.
    (relabel,) = job["relabel_configs"]
    relabel["regex"] = "(.*)"
    config["scrape_configs"].append(
        # Somebody else's, and down: there is nothing on this port.
        {"job_name": "another", "static_configs": [{"targets": ["127.0.0.1:1"]}]}
    )
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    return config


def test_the_servers_are_told_apart_by_namespace_and_pod(prometheus: Prometheus) -> None:
    labels = [series["metric"] for series in prometheus.ask("up == 1")]
    assert {each["job"] for each in labels} == {"basaran_ops"}
    assert {each["namespace"] for each in labels} == {"compose"}
    assert len({each["pod"] for each in labels}) == 2


def test_promtool_has_no_objection_to_the_names_of_the_metrics() -> None:
    check = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=exposition(0),
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in check.stderr.splitlines() if "no help text" not in line]
    # vLLM's name, which gateways read.
    assert [line for line in complaints if "kv_cache_usage_perc" not in line] == []


def test_every_rule_can_be_evaluated(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    failed = {
        rule["name"]: rule.get("lastError")
        for group in groups
        for rule in group["rules"]
        if rule["health"] != "ok"
    }
    assert failed == {}


@pytest.mark.parametrize("name", recordings())
def test_every_recording_records(name: str, prometheus: Prometheus) -> None:
    assert prometheus.ask(name)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_of_a_panel_has_an_answer(panel: dict, prometheus: Prometheus) -> None:
    for query in queries(panel):
        answer = prometheus.ask(query)
        assert any(not math.isnan(float(series["value"][1])) for series in answer), query


def test_the_state_of_a_pod_is_one_number(prometheus: Prometheus) -> None:
    (panel,) = (panel for panel in PANELS if panel["title"] == "State")
    (query,) = queries(panel)
    assert [series["value"][1] for series in prometheus.ask(query)] == ["2", "2"]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    assert mapping["options"]["2"]["text"] == "ready"
    states = {option["text"] for option in mapping["options"].values()}
    assert states == {"unreachable", *SERIES["basaran_engine_state"]["state"]}


def test_a_panel_does_not_count_the_servers_of_other_jobs(prometheus: Prometheus) -> None:
    (panel,) = (panel for panel in PANELS if panel["title"] == "Unreachable")
    (query,) = queries(panel)
    assert [series["value"][1] for series in prometheus.ask(query)] == ["0"]

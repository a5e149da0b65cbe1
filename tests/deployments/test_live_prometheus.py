"""A real Prometheus with our configuration scrapes two servers: every rule and every panel works on that."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator

import pytest

from .fake_exposition import exposition, management_port
from .grafana import PANELS, queries
from .metric_families import SERIES
from .prometheus import SECONDS, Prometheus, running_prometheus
from .promtool import program, recordings


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        management_port() as one,
        management_port() as other,
        running_prometheus(directory, [one, other]) as server,
    ):
        # Both servers, three times each, and the recordings after that.
        server.wait_for(f"count(count_over_time(up[{SECONDS}s]) >= 3) == 3")
        server.wait_for("model:basaran_slow_tokens:ratio_rate3d")
        yield server


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

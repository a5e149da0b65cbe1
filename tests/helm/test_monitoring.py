"""Monitors, rules and dashboard: what deployments/monitoring has, for a cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ..deployments.promtool import MONITORING, RULES, promtool
from .charts import Object, none, one, refusal, render
from .generated import ROOT


def endpoint(kind: str) -> Object:
    name = kind[0].lower() + kind[1:]
    spec = one(render({"metrics": {name: {"enabled": True}}}), kind)["spec"]
    (found,) = spec["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
    return found


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_a_monitor_names_the_job_that_rules_and_dashboard_read(kind: str) -> None:
    found = endpoint(kind)
    (config,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert found["relabelings"] == [
        {"action": "replace", "targetLabel": "job", "replacement": config["job_name"]}
    ]
    jobs = set(re.findall(r'job="(\w+)"', RULES.read_text()))
    assert jobs == {config["job_name"]}
    assert (found["port"], found["path"]) == ("management", "/metrics")


def test_two_monitors_that_would_count_all_twice_are_refused() -> None:
    both = {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}
    assert "choose one" in refusal({"metrics": both})


@pytest.mark.parametrize("name", ["serviceMonitor", "podMonitor", "rules"])
def test_a_prometheus_can_select_it_by_labels(name: str) -> None:
    objects = render({"metrics": {name: {"enabled": True, "labels": {"release": "prometheus"}}}})
    kind = {"serviceMonitor": "ServiceMonitor", "podMonitor": "PodMonitor", "rules": "PrometheusRule"}[name]
    assert one(objects, kind)["metadata"]["labels"]["release"] == "prometheus"


def rules(**changes: object) -> Object:
    return one(render({"metrics": {"rules": {"enabled": True} | changes}}), "PrometheusRule")["spec"]


def test_the_rules_are_those_that_are_tested() -> None:
    assert rules() == yaml.safe_load(RULES.read_text())


def test_links_lead_to_the_runbook_wherever_it_is() -> None:
    prefix = "https://git.example.com/x/"
    found = [
        rule["annotations"]["runbook_url"]
        for group in rules(runbookPrefix=prefix)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(found) > 10
    sections = re.findall(r"^### (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert {link.removeprefix(f"{prefix}docs/runbook.md#") for link in found} == {s.lower() for s in sections}


def test_promtool_accepts_what_is_rendered(tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rules(runbookPrefix="https://git.example.com/x/")))
    result = promtool("check", "rules", path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboard_is_the_one_that_is_tested_for_grafana_s_sidecar() -> None:
    found = one(render({"metrics": {"dashboard": {"enabled": True}}}), "ConfigMap", "basaran-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = found["data"].values()
    assert json.loads(text) == json.loads((MONITORING / "dashboards/basaran.json").read_text())


def test_nothing_of_it_is_installed_where_nobody_asked() -> None:
    objects = render({})
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"):
        assert none(objects, kind)

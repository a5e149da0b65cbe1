"""The rules are what promtool accepts, and each alert fires when its test cases say and at no other time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .expressions import faults, selectors
from .metric_families import SERIES
from .promtool import CASES, MONITORING, RULES, alerts, promtool, recordings, rules

MINUTES = {"m": 1, "h": 60}


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    for check, path in (("config", MONITORING / "prometheus.yml"), ("rules", RULES)):
        result = promtool("check", check, path)
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{len(rules())} rules found" in result.stdout or check == "config"


def test_promtool_finds_that_all_cases_hold() -> None:
    result = promtool("test", "rules", *CASES)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_has_cases_of_firing_and_of_silence(alert: str) -> None:
    fired = [
        bool(case["exp_alerts"]) for _, group in groups_about(alert) for case in group["alert_rule_test"]
    ]
    assert any(fired), "it never fires"
    assert not all(fired), "it is never silent"


def test_no_case_is_about_an_alert_that_is_not_there() -> None:
    # promtool finds no fault in these: an unknown alert is a silent one.
    named = {
        case["alertname"]
        for path in CASES
        for group in yaml.safe_load(path.read_text())["tests"]
        for case in group["alert_rule_test"]
    }
    assert named == set(alerts())


def changed(alert: str) -> Iterator[tuple[str, dict]]:
    """The alert with its threshold or its time a little off, in every way there is."""
    rule = alerts()[alert]
    for match in re.finditer(r"([<>]=?) (\d+(\.\d+)?)", rule["expr"]):
        value = float(match[2])
        # A count by one, a share by a tenth of itself.
        step = value * 0.1 if match[3] else 1
        for other in (value - step, value + step):
            text = f"{rule['expr'][: match.start()]}{match[1]} {other:g}{rule['expr'][match.end() :]}"
            yield f"{match[0]} is {other:g}", {**rule, "expr": text}
    waits = rule.get("for", "0m")
    interval = minutes(next(iter(groups_about(alert)))[0])
    for other in (minutes(waits) - interval, minutes(waits) + interval):
        if other >= 0:
            yield f"for is {other}m", {**rule, "for": f"{other}m"}


@pytest.mark.parametrize("alert", alerts())
def test_a_case_fails_whichever_way_a_threshold_or_a_time_is_changed(alert: str, tmp_path: Path) -> None:
    assert holds(alert, alerts()[alert], tmp_path)
    unnoticed = [change for change, rule in changed(alert) if holds(alert, rule, tmp_path)]
    assert unnoticed == []


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(alert: str) -> None:
    rule = alerts()[alert]
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert re.search(r"\{\{ *\$value", rule["annotations"]["description"]), "it does not tell the value"
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_metrics_and_labels_that_there_are(rule: dict) -> None:
    assert faults(rule["expr"]) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("basaran_no_such_metric", "no metric"),
        ('basaran_engine_state{model="x"}', "no label model"),
        ('basaran_engine_state{state="asleep"}', "never has"),
        ("sum by (pod_name) (basaran_pool_slots)", "label pod_name"),
        ("basaran_pool_slots / on (device) basaran_queue_capacity", "label device"),
        ('basaran_time_to_first_token_seconds_bucket{le="3.0"}', "never has"),
    ],
)
def test_the_check_of_names_finds_what_is_wrong(expression: str, fault: str) -> None:
    (found,) = faults(expression)
    assert fault in found


def test_objectives_lie_on_bounds_of_buckets() -> None:
    bounds = [
        matcher.value
        for rule in recordings().values()
        for selector in selectors(rule["expr"])
        for matcher in selector.matchers.matchers
        if matcher.name == "le" and matcher.value in SERIES[selector.name]["le"]
    ]
    assert bounds == ["2.5"] * 5 + ["0.2"] * 5


def test_all_that_is_recorded_is_read() -> None:
    read = {selector.name for rule in rules() for selector in selectors(rule["expr"])}
    assert recordings().keys() <= read


def groups_about(alert: str) -> Iterator[tuple[str, dict]]:
    """Groups of cases, each with its interval of evaluation, with no case but of this alert."""
    for path in CASES:
        file = yaml.safe_load(path.read_text())
        for group in file["tests"]:
            if cases := [case for case in group["alert_rule_test"] if case["alertname"] == alert]:
                yield file["evaluation_interval"], {**group, "alert_rule_test": cases}


def holds(alert: str, rule: dict, directory: Path) -> bool:
    """Whether the alert's cases hold for this form of it."""
    group = {"name": "all", "rules": [*needed_recordings(rule["expr"]), rule]}
    (directory / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    intervals, groups = zip(*groups_about(alert), strict=True)
    (directory / "cases.yml").write_text(
        yaml.safe_dump(
            {"rule_files": ["rules.yml"], "evaluation_interval": intervals[0], "tests": list(groups)}
        )
    )
    result = promtool("test", "rules", directory / "cases.yml")
    output = result.stdout + result.stderr
    assert (result.returncode == 0) != ("got:[" in output), output
    return result.returncode == 0


def needed_recordings(expression: str) -> list[dict]:
    names = {selector.name for selector in selectors(expression)} & recordings().keys()
    inner = [rule for name in names for rule in needed_recordings(recordings()[name]["expr"])]
    needed = {rule["record"] for rule in inner} | names
    return [rule for name, rule in recordings().items() if name in needed]


def minutes(duration: str) -> int:
    return int(duration[:-1]) * MINUTES[duration[-1]]

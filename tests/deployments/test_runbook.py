"""The runbook has what an operator needs for each alert, and names only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from basaran_ops.settings import Settings

from .expressions import faults
from .promtool import alerts

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
QUERIES = [
    line.strip()
    for block in re.findall(r"```promql\n(.*?)```", RUNBOOK, re.DOTALL)
    for line in block.splitlines()
]


def section(alert: str) -> str:
    return RUNBOOK.split(f"\n### {alert}\n")[1].split("\n### ")[0].split("\n## ")[0]


def test_there_is_a_section_for_each_alert_in_the_order_of_the_rules() -> None:
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == list(alerts())


@pytest.mark.parametrize("alert", alerts())
def test_a_section_tells_what_it_means_what_users_see_where_to_look_and_what_to_do(alert: str) -> None:
    parts = ["It means", "Users see", "Look at", "Do"]
    assert re.findall(r"^\*\*(.+?)\*\*", section(alert), re.MULTILINE) == parts
    rule = alerts()[alert]
    minutes = rule.get("for", "").removesuffix("m")
    waits = f"after {minutes} minute{'s' if minutes != '1' else ''}" if minutes else "at once"
    assert section(alert).strip().splitlines()[0] == f"*{rule['labels']['severity']}*, {waits}"


def test_every_link_leads_to_a_section() -> None:
    links = set(re.findall(r"\]\(#(\w+)\)", RUNBOOK))
    assert links <= {alert.lower() for alert in alerts()}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_reads_only_metrics_and_labels_that_there_are(query: str) -> None:
    assert faults(query) == []


def test_every_setting_it_names_is_a_setting() -> None:
    named = set(re.findall(r"`((?:MODEL|SERVER|COMPLETION|ENGINE|CUDA)_\w+)`", RUNBOOK))
    assert len(named) >= 10
    assert named <= {name.upper() for name in Settings.model_fields}


def test_every_log_line_it_names_is_logged() -> None:
    lines = re.findall(r"log lines? `([^`]+)`(?: and `([^`]+)`)?", RUNBOOK.replace("\n", " "))
    named = {line for pair in lines for line in pair if line}
    code = "\n".join(path.read_text() for path in (ROOT / "basaran_ops").rglob("*.py"))
    assert len(named) > 5
    assert {line for line in named if line not in code} == set()

"""Prometheus's own programs, asked about our files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "deployments/monitoring"
RULES = MONITORING / "rules/basaran.rules.yml"
CASES = sorted((MONITORING / "tests").glob("*.yml"))


def program(name: str) -> str:
    """Where it is, or a failure that says how to get it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not on the PATH: `make tools` installs it, or says how to")
    return path


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recordings() -> dict[str, dict]:
    return {rule["record"]: rule for rule in rules() if "record" in rule}

"""What a release's workflow does in its shell, and what `make tools` installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from .generated import ROOT

RELEASE = yaml.load((ROOT / ".github/workflows/release.yml").read_text(), yaml.BaseLoader)
CHANGELOG = """# Changelog

## 0.1.10 (2031-01-01)

Tenth.

## 0.1.1

First.

## 0.1.0 (2030-01-01)

None.
"""


def script(job: str, name: str) -> str:
    (step,) = [step for step in RELEASE["jobs"][job]["steps"] if step.get("name", "").startswith(name)]
    return step["run"]


@pytest.mark.parametrize(
    ("version", "notes"), [("0.1.10", "Tenth."), ("0.1.1", "First."), ("0.1.0", "None."), ("0.1", "")]
)
def test_the_notes_are_the_part_of_the_version_and_of_no_other(
    version: str, notes: str, tmp_path: Path
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    command = next(line for line in script("release", "The changelog").splitlines() if "notes.md" in line)
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=os.environ | {"VERSION": version}, check=True)
    assert (tmp_path / "notes.md").read_text().strip() == notes


@pytest.mark.parametrize(
    ("package", "chart", "heading", "fits"),
    [
        ("0.1.1", "0.1.1", "0.1.1 (unreleased)", True),
        ("0.1.1", "0.1.1", "0.1.1", True),
        ("0.1.1", "0.1.1", "0.1.10", False),
        ("0.1.1", "0.1.10", "0.1.1", False),
        ("0.1.1", "0x1.1", "0.1.1", False),
        ("0.1.2", "0.1.1", "0.1.1", False),
    ],
)
def test_a_tag_is_of_one_version_with_package_chart_and_changelog(
    package: str, chart: str, heading: str, fits: bool, tmp_path: Path
) -> None:
    files = {
        "basaran_ops/__init__.py": f'__version__ = "{package}"\n',
        "helm/Chart.yaml": f'version: {chart}\nappVersion: "{chart}"\n',
        "CHANGELOG.md": f"## {heading}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    told = {
        "GITHUB_REF_NAME": "v0.1.1",
        "GITHUB_REPOSITORY_OWNER": "Owner",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    command = ["bash", "-eo", "pipefail", "-c", script("version", "The tag")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is fits, done.stderr
    if fits:
        assert re.search(
            r"^version=0\.1\.1\nregistry=ghcr\.io/owner$", (tmp_path / "output").read_text(), re.MULTILINE
        )


@pytest.mark.parametrize(
    ("there", "installed"),
    [
        ({"promtool", "prometheus", "chromium"}, []),
        ({"promtool", "prometheus"}, ["chromium", "fonts-dejavu-core"]),
        ({"promtool", "chromium"}, ["prometheus"]),
        ({"chromium"}, ["prometheus"]),
        (set(), ["chromium", "fonts-dejavu-core", "prometheus"]),
    ],
)
@pytest.mark.parametrize("root", [True, False])
def test_make_installs_only_the_tools_that_are_missing(
    there: set[str], installed: list[str], root: bool, tmp_path: Path
) -> None:
    """The recipe as make runs it, with the given programs and an apt-get that only notes its arguments."""
    programs = dict.fromkeys(there, "exit 1")
    programs |= {"id": f"echo {0 if root else 1000}", "apt-get": f'echo "$@" >> {tmp_path}/asked'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "--old-file=.venv/installed-chart", "SHELL=/bin/sh", "tools"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    if not installed or root:
        assert done.returncode == 0, done.stderr
        options = "install -y --no-install-recommends"
        assert asked == (["update", f"{options} {' '.join(installed)}"] if installed else [])
    else:
        assert done.returncode != 0
        assert f"missing: {' '.join(installed)}:" in done.stderr
        assert asked == []

"""The public forge's workflows: pinned, with few rights, and calling what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORGE = ROOT / ".github"
PATHS = sorted((FORGE / "workflows").glob("*.y*ml"))
# `on` is a boolean for YAML 1.1.
WORKFLOWS = {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in PATHS}

workflows = pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)

PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
"""By commit; the comment is for people and for Dependabot."""
LOCAL = re.compile(r"uses: \./\.github/workflows/[\w-]+\.yml\b")


def jobs() -> Iterator[tuple[str, str, dict]]:
    for name, workflow in WORKFLOWS.items():
        for job, content in workflow["jobs"].items():
            yield name, job, content


def commands(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job.get("steps", []))


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-workflows", path) for path in PATHS] + [("dependabot", FORGE / "dependabot.yml")],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_file_is_as_the_forge_wants_it(schema: str, path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_is_found_that_an_attacker_could_use() -> None:
    zizmor = shutil.which("zizmor", path=Path(sys.executable).parent)
    assert zizmor is not None
    result = subprocess.run(
        [zizmor, "--offline", "--no-progress", FORGE], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_action_is_pinned_to_a_commit_and_to_one() -> None:
    lines = [line.strip().removeprefix("- ") for path in PATHS for line in path.read_text().splitlines()]
    uses = [line for line in lines if line.startswith("uses:")]
    assert len(uses) > 15
    assert [line for line in uses if not PINNED.match(line) and not LOCAL.match(line)] == []
    pins = {
        line.split("@")[0]: {other for other in uses if other.startswith(line.split("@")[0] + "@")}
        for line in uses
    }
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


@workflows
def test_a_token_may_read_and_a_job_that_writes_says_what(workflow: dict) -> None:
    assert workflow["permissions"] == {"contents": "read"}


def test_only_a_release_writes_and_each_job_no_more_than_its_part() -> None:
    written = {
        (name, job): {scope for scope, access in content.get("permissions", {}).items() if access == "write"}
        for name, job, content in jobs()
    }
    assert {place: scopes for place, scopes in written.items() if scopes} == {
        ("release", "image"): {"packages"},
        ("release", "manifest"): {"packages", "id-token", "attestations"},
        ("release", "chart"): {"packages"},
        ("release", "release"): {"contents"},
    }


def test_a_checkout_leaves_no_token_behind_and_no_job_runs_for_ever() -> None:
    for name, job, content in jobs():
        assert "uses" in content or int(content["timeout-minutes"]) <= 90, (name, job)
        for step in content.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false", (name, job)


def test_no_command_contains_what_others_may_have_written() -> None:
    for name, job, content in jobs():
        assert "${{" not in commands(content), (name, job)


def test_changes_are_linted_and_tested_with_chart_and_images_for_two_architectures() -> None:
    ci = WORKFLOWS["ci"]
    assert ci["on"].keys() == {"push", "pull_request", "workflow_call"}
    assert ci["jobs"].keys() == {"lint", "test", "chart", "image"}
    assert "make lint" in commands(ci["jobs"]["lint"])
    assert "make test" in commands(ci["jobs"]["test"])
    assert "tests/helm" in commands(ci["jobs"]["chart"])
    assert commands(ci["jobs"]["image"]).split() == ["make", "image", "make", "image-test"]
    assert ci["jobs"]["image"]["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]


def test_a_release_is_made_of_what_was_tested() -> None:
    release = WORKFLOWS["release"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    needs = {job: set(content.get("needs", [])) for job, content in release["jobs"].items()}
    assert release["jobs"]["ci"]["uses"].endswith("/ci.yml")
    assert "ci" in needs["image"]
    assert "image" in needs["manifest"]
    assert "manifest" in needs["chart"]
    assert "chart" in needs["release"]
    assert release["jobs"]["image"]["strategy"]["matrix"]["platform"] == ["amd64", "arm64"]


def test_what_the_commands_name_is_there() -> None:
    text = "\n".join(commands(content) for _, _, content in jobs())
    verbs = set(re.findall(r"^(?:sudo )?make ([a-z-]+)", text, re.MULTILINE))
    assert {"lint", "test", "image", "image-test"} <= verbs
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert verbs <= defined
    paths = re.findall(r"(?:pytest|package) ([\w/.-]+)", text) + re.findall(r"\w+/\w+\.(?:py|yaml)\b", text)
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_a_releases_version_is_found_in_the_files_as_they_are() -> None:
    """The release's first step, run here with the tag of the present version."""
    steps = WORKFLOWS["release"]["jobs"]["version"]["steps"]
    script = next(step["run"] for step in steps if "run" in step)
    from basaran_ops import __version__

    def status(tag: str, output: Path) -> int:
        environ = {"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": tag, "GITHUB_OUTPUT": str(output)}
        environ["GITHUB_REPOSITORY_OWNER"] = "Some-One"
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=ROOT, env=environ, capture_output=True, check=False
        ).returncode

    assert status("v0.0.9", Path("/dev/null")) != 0
    assert status(f"v{__version__}", Path("/dev/null")) == 0

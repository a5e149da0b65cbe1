"""What can be said of the image before it is built; check_image.py has the rest."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

import basaran_ops
from basaran_ops.settings import Settings, unknown_variables

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "deployments/bundle"
DOCKERFILES = [ROOT / "Dockerfile", *sorted(BUNDLES.glob("*Dockerfile"))]
TEXT = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deployments/compose/compose.yaml").read_text())["services"]["basaran-ops"]


def instructions(text: str = TEXT) -> list[tuple[str, str]]:
    """Each with its arguments on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def last_stage() -> dict[str, list[str]]:
    """The arguments of its instructions."""
    found: dict[str, list[str]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            found = {}
        found.setdefault(name, []).append(arguments)
    return found


def environment() -> dict[str, str]:
    words = shlex.split(" ".join(last_stage()["ENV"]))
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint is not None
    result = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_base_is_a_patch_release_and_the_label_names_it() -> None:
    images = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    stages = {arguments.split()[-1] for name, arguments in instructions() if " AS " in arguments}
    (base,) = {image for image in images if image not in stages | {"scratch"}}
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert f'image.base.name="docker.io/library/{base}"' in TEXT


def test_what_runs_is_not_root_and_is_run_without_a_shell() -> None:
    stage = last_stage()
    assert stage["USER"] == ["10001:10001"]
    assert json.loads(stage["ENTRYPOINT"][0]) == ["python", "-m", "basaran_ops"]
    assert stage["STOPSIGNAL"] == ["SIGTERM"]
    assert "CMD" not in stage
    assert "VOLUME" not in stage


def test_the_last_stage_runs_nothing_and_takes_only_what_was_built() -> None:
    stage = last_stage()
    assert "RUN" not in stage
    assert all(arguments.startswith("--from=") for arguments in stage["COPY"])


def test_the_ports_are_basarans_and_the_settings_are_known() -> None:
    settings = Settings.from_environment(environment())
    assert settings.port == 80
    assert settings.model_cache_dir == "/models"
    assert last_stage()["EXPOSE"] == [f"80 {settings.management_port}"]
    assert unknown_variables(environment()) == []


def test_the_compose_files_think_of_the_image_as_it_is() -> None:
    variables = environment()
    for name in ("MODEL_CACHE_DIR", "HF_HOME"):
        assert COMPOSE["environment"][name] == variables[name]
    assert any(port.endswith(f":{variables['PORT']}") for port in COMPOSE["ports"])
    (mount,) = COMPOSE["volumes"]
    assert mount.endswith(f":{variables['MODEL_CACHE_DIR']}")


def test_the_labels_are_complete() -> None:
    labels = re.findall(r"org\.opencontainers\.image\.([\w.]+)=", " ".join(last_stage()["LABEL"]))
    assert {"title", "description", "licenses", "version", "revision", "created", "base.name"} <= set(labels)
    assert f"VERSION={basaran_ops.__version__}" in last_stage()["ARG"]


def test_every_page_names_the_image_of_this_version() -> None:
    pages = [ROOT / "README.md", BUNDLES / "README.md", *DOCKERFILES[1:]]
    for page in pages:
        versions = set(re.findall(r"basaran-ops:([0-9][\w.]*)", page.read_text()))
        assert versions == {basaran_ops.__version__}, page


def test_all_that_is_copied_is_sent_to_the_builder_and_little_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines
    assert all((ROOT / path).exists() for path in allowed)
    sources = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    for source in sources:
        assert any(source == path or source.startswith(path + "/") for path in allowed), source
    for path in allowed:
        assert any(fnmatch.fnmatch(source, path + "*") for source in sources), path


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_readiness_on_whatever_port(status: int, healthy: bool) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    options, command = last_stage()["HEALTHCHECK"][0].split(" CMD ")
    assert "--start-period=30m" in options
    python, *arguments = json.loads(command)
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        # A proxy must not be asked.
        environ = {"MANAGEMENT_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
        result = subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False)
        thread.join()
    assert (result.returncode == 0) is healthy
    assert asked == ["/readyz"]


def test_the_health_check_fails_where_nobody_answers() -> None:
    _, *arguments = json.loads(last_stage()["HEALTHCHECK"][0].split(" CMD ")[1])
    result = subprocess.run(
        [sys.executable, *arguments], env={"MANAGEMENT_PORT": "9"}, capture_output=True, check=False
    )
    assert result.returncode != 0

"""What `make image` hands to the builder."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import basaran_ops

SCRIPTS = Path(__file__).parents[2] / "deployments/image"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location("image_build", SCRIPTS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def secrets(arguments: list[str]) -> dict[str, Path]:
    found = (re.fullmatch(r"id=(.+),src=(.+)", word) for word in arguments)
    return {match[1]: Path(match[2]) for match in found if match}


def test_pips_configuration_holds_in_the_build_where_it_means_something_there(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheels, certificates, file = tmp_path / "wheels", tmp_path / "ca.pem", tmp_path / "pip.conf"
    wheels.mkdir()
    certificates.touch()
    file.write_text(
        "[global]\n"
        "index-url = https://user:secret@mirror.example/simple\n"
        f"extra-index-url = file://{tmp_path}/simple https://other.example/simple\n"
        f"constraint = {tmp_path}/constraints.txt\n"
        f"cert = {tmp_path}/overridden.pem\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_CERT", str(certificates))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with build.pip_sources() as arguments:
        assert f"wheels={wheels}" in arguments
        assert secrets(arguments)["ca-bundle"] == certificates
        written = secrets(arguments)["pip.conf"]
        lines = written.read_text().splitlines()
    assert not written.exists()
    assert lines[0] == "[global]"
    assert "index-url = https://user:secret@mirror.example/simple" in lines
    assert "extra-index-url = https://other.example/simple" in lines
    assert "cert = /run/secrets/ca-bundle" in lines
    assert str(tmp_path) not in "\n".join(lines)
    # What is on the command line is in the image's history.
    assert "secret" not in "".join(arguments).replace("--secret", "").replace("/run/secrets", "")


def test_a_directory_that_has_torchs_wheel_is_enough(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert not build.wheel_of_torch("cpu")
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    assert build.wheel_of_torch("cpu")
    assert not build.wheel_of_torch("cu130")


def test_the_image_is_told_its_version_revision_and_time(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    words = build.described("cu130")
    assert words[::2] == ["--build-arg"] * 4
    values = dict(word.split("=", 1) for word in words[1::2])
    assert values["TORCH_VARIANT"] == "cu130"
    assert values["VERSION"] == basaran_ops.__version__
    assert values["CREATED"] == "1970-01-01T00:00:00Z"
    assert re.fullmatch(r"[0-9a-f]{40}(-modified)?", values["REVISION"])


def test_where_nothing_can_build_it_is_said(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(SystemExit, match="neither a Docker daemon nor buildah"):
        build.builder()


def test_the_base_is_the_dockerfiles(build: ModuleType) -> None:
    assert re.fullmatch(r"python:[\w.-]+", build.base_name())

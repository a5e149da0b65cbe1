"""Images with their model inside, built on the built image from a hub on this machine: `make image-test`."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..fake_hub import FakeHub, fake_hub
from ..tiny_models import save_tiny
from .containers import ENGINE, IMAGE, ask, container, health_check, inspect

BUNDLES = Path(__file__).parents[2] / "deployments/bundle"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repos["user/repo"] = save_tiny(tmp_path / "tiny")
        yield hub


@pytest.fixture
def tag() -> Iterator[str]:
    name = f"basaran-ops-bundle:{uuid.uuid4().hex[:12]}"
    yield name
    ask("rmi", "--force", name, check=False)


def build(
    dockerfile: str, tag: str, hub: FakeHub, *arguments: str, **environ: str
) -> subprocess.CompletedProcess:
    command = ["docker", "build"] if ENGINE == "docker" else ["buildah", "build", "--format", "docker"]
    for name, value in {"BASARAN_OPS_IMAGE": IMAGE, "MODEL": "user/repo", "HF_ENDPOINT": hub.url}.items():
        command += ["--build-arg", f"{name}={value}"]
    command += [
        "--file",
        str(BUNDLES / dockerfile),
        "--network",
        "host",
        "--tag",
        tag,
        *arguments,
        str(BUNDLES),
    ]
    environ = {"BUILDAH_ISOLATION": "chroot"} | os.environ | environ
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def archive(tag: str, path: Path) -> bytes:
    """All of the image's layers and its configuration."""
    ask("save", "--output", str(path), tag)
    return path.read_bytes()


def serves(tag: str) -> bool:
    with container(image=tag, ENGINE_THREADS="1", MODEL_LOCAL_FILES_ONLY="true") as server:
        server.wait_ready()
        (model,) = server.http.get("/v1/models").json()["data"]
        return model["id"] == "user/repo" and server.complete(max_tokens=2).status_code == 200


def test_a_bundle_serves_its_model_without_the_hub(hub: FakeHub, tag: str) -> None:
    built = build("Dockerfile", tag, hub)
    assert built.returncode == 0, built.stdout + built.stderr
    fetched = len(hub.requests)
    assert "model.safetensors" in hub.downloads()
    assert serves(tag)
    assert len(hub.requests) == fetched
    # What the image itself promises still holds.
    ours, theirs = inspect(IMAGE)["Config"], inspect(tag)["Config"]
    for promise in ("User", "Entrypoint", "StopSignal", "ExposedPorts"):
        assert theirs[promise] == ours[promise]
    assert health_check(tag) == health_check(IMAGE)


def test_a_private_models_token_is_needed_and_ends_nowhere(hub: FakeHub, tag: str, tmp_path: Path) -> None:
    hub.status, hub.error_code, hub.token = 401, "RepoNotFound", f"hf_{uuid.uuid4().hex}"
    refused = build("private.Dockerfile", tag, hub)
    assert refused.returncode != 0
    wrong = build("private.Dockerfile", tag, hub, "--secret", "id=hf_token,env=TOKEN", TOKEN="hf_wrong")
    assert wrong.returncode != 0
    assert "HF_TOKEN" in wrong.stdout + wrong.stderr

    built = build("private.Dockerfile", tag, hub, "--secret", "id=hf_token,env=TOKEN", TOKEN=hub.token)
    assert built.returncode == 0, built.stdout + built.stderr
    content = archive(tag, tmp_path / "image.tar")
    # What is looked for could be found: the model is.
    assert (hub.repos["user/repo"] / "model.safetensors").read_bytes() in content
    assert hub.token.encode() not in content
    assert hub.token not in built.stdout + built.stderr
    assert serves(tag)

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from basaran_ops.checkpoint import resolve
from basaran_ops.checkpoint.hub import ABANDONED_SECONDS
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

from ..fake_hub import COMMIT, FakeHub, fake_hub
from ..tiny_models import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_tiny(tmp_path_factory.mktemp("hub") / "tiny")
    (path / "consolidated.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    (path / "pytorch_model.bin").write_bytes(b"as large as the others")
    (path / "picture.png").write_bytes(b"")
    return path


@pytest.fixture
def hub(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repos["org/tiny"] = model_path
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
        huggingface_hub.close_session()


def settings(tmp_path: Path, **values: object) -> Settings:
    chosen = {"model": "org/tiny", "model_cache_dir": str(tmp_path / "cache")} | values
    return Settings(**chosen)  # type: ignore[arg-type]


def failure(settings: Settings) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as raised:
        resolve(settings, print)
    assert "\n" not in raised.value.message
    return raised.value


def left_over(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_hub_id_is_fetched_into_the_cache_directory_and_only_once(hub: FakeHub, tmp_path: Path) -> None:
    stages: list[str] = []
    first = resolve(settings(tmp_path), stages.append)
    assert first.path.is_relative_to(tmp_path / "cache")
    assert first.path.name == COMMIT
    assert stages == ["fetching org/tiny from the hub"]
    hub.requests.clear()
    assert resolve(settings(tmp_path), print) == first
    assert not hub.downloads()


def test_what_is_not_needed_is_not_fetched(hub: FakeHub, tmp_path: Path) -> None:
    resolve(settings(tmp_path), print)
    assert sorted(hub.downloads()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_revision_is_the_one_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    hub.revisions = ("v2",)
    error = failure(settings(tmp_path))
    assert error.permanent
    assert error.message == "MODEL=org/tiny has no such MODEL_REVISION on the hub"
    hub.revisions = ("v2", COMMIT)
    assert resolve(settings(tmp_path, model_revision="v2"), print).path.name == COMMIT
    assert any("/revision/v2" in request for request in hub.requests)


def test_a_model_in_the_cache_needs_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    fetched = resolve(settings(tmp_path), print)
    hub.requests.clear()
    assert resolve(settings(tmp_path, model_local_files_only=True), print) == fetched
    assert not hub.requests
    hub.status = 503
    assert resolve(settings(tmp_path), print) == fetched


def test_a_model_that_is_only_in_part_in_the_cache_is_refused_when_downloads_are_off(
    hub: FakeHub, tmp_path: Path
) -> None:
    path = resolve(settings(tmp_path), print).path
    (path / "model.safetensors").unlink()
    error = failure(settings(tmp_path, model_local_files_only=True))
    assert error.permanent
    assert "is not in the local cache as a whole, and downloads are off" in error.message
    assert (resolve(settings(tmp_path), print).path / "model.safetensors").is_file()


@pytest.mark.parametrize("files_only", [False, True], ids=["everything", "files"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "GatedRepo", "is gated: accept its terms on the hub, and set HF_TOKEN"),
        (403, "GatedRepo", "is gated: accept its terms on the hub, and set HF_TOKEN"),
        (401, "RepoNotFound", "is not on the hub, or is private"),
        (404, "RepoNotFound", "is not on the hub, or is private"),
        (401, "", "is refused by the hub with status 401: check HF_TOKEN"),
        (403, "", "is refused by the hub with status 403: check HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_refused_for_good(
    status: int, code: str, expected: str, files_only: bool, hub: FakeHub, tmp_path: Path
) -> None:
    hub.status, hub.error_code, hub.files_only = status, code, files_only
    error = failure(settings(tmp_path))
    assert error.permanent
    assert expected in error.message
    assert not left_over(tmp_path)


def test_a_token_opens_a_gated_model(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status, hub.error_code, hub.files_only, hub.token = 401, "GatedRepo", True, "hf_secret"
    assert "gated" in failure(settings(tmp_path)).message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert resolve(settings(tmp_path), print).path.name == COMMIT


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_now_may_answer_another_time(status: int, hub: FakeHub, tmp_path: Path) -> None:
    hub.status = status
    error = failure(settings(tmp_path))
    assert not error.permanent
    assert "MODEL=org/tiny cannot be fetched from the hub: " in error.message
    assert str(status) in error.message
    hub.status = None
    assert resolve(settings(tmp_path), print).path.name == COMMIT


def test_a_hub_that_is_not_there_may_come_back(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = failure(settings(tmp_path))
    assert not error.permanent
    assert error.message.startswith("MODEL=org/tiny cannot be fetched from the hub: ")
    assert error.message.endswith("Connection refused")


def test_the_clients_retries_do_not_flood_the_log(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.status, hub.files_only = 503, True
    with caplog.at_level(logging.WARNING):
        failure(settings(tmp_path))
    assert not caplog.records


def test_a_killed_download_is_not_taken_for_a_whole_one(hub: FakeHub, tmp_path: Path) -> None:
    """The download is a process of its own, killed while the weights come."""
    hub.stall_at = 1000
    script = (
        "from basaran_ops.checkpoint import resolve\n"
        "from basaran_ops.settings import Settings\n"
        f"resolve(Settings(model='org/tiny', model_cache_dir={str(tmp_path / 'cache')!r}), print)\n"
    )
    environ = os.environ | {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
    download = subprocess.Popen([sys.executable, "-c", script], env=environ, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(60)
    download.kill()
    download.wait()
    hub.stall_at = None
    assert left_over(tmp_path)
    error = failure(settings(tmp_path, model_local_files_only=True))
    assert "is not in the local cache as a whole" in error.message
    again = resolve(settings(tmp_path), print).path
    assert (again / "model.safetensors").read_bytes() == (
        hub.repos["org/tiny"] / "model.safetensors"
    ).read_bytes()


def test_what_killed_downloads_left_is_removed_once_nobody_writes_to_it(hub: FakeHub, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    for name, age in (("old", ABANDONED_SECONDS + 60), ("new", 1)):
        file = blobs / f"{name}.incomplete"
        file.write_text("half")
        os.utime(file, (time.time() - age,) * 2)
    resolve(settings(tmp_path), print)
    assert [path.name for path in left_over(tmp_path)] == ["new.incomplete"]


def test_pickled_weights_are_fetched_only_where_allowed_and_alone(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_tiny(tmp_path / "pickled")
    torch.save(tiny_model("llama").state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    hub.repos["org/pickled"] = path
    chosen = settings(tmp_path, model="org/pickled")
    assert "MODEL_ALLOW_PICKLE" in failure(chosen).message
    assert "pytorch_model.bin" not in hub.downloads()
    allowed = settings(tmp_path, model="org/pickled", model_allow_pickle=True)
    assert (resolve(allowed, print).path / "pytorch_model.bin").is_file()
    assert "MODEL_ALLOW_PICKLE: loading" in caplog.text
    hub.requests.clear()
    resolve(settings(tmp_path, model_allow_pickle=True), print)
    assert "model.safetensors" in hub.downloads()
    assert "pytorch_model.bin" not in hub.downloads()

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from basaran_ops.checkpoint import resolve
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

from ..fake_hub import COMMIT, FakeHub, fake_hub
from ..tiny_adapters import save_adapter
from ..tiny_models import save_tiny, tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("adapters") / "tiny")


@pytest.fixture
def adapter_path(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", tiny_model("llama"), 1)


@pytest.fixture
def hub(adapter_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repos["org/adapter"] = adapter_path
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
        huggingface_hub.close_session()


def settings(model: Path, tmp_path: Path, adapters: str, **values: object) -> Settings:
    chosen = {
        "model": str(model),
        "model_cache_dir": str(tmp_path / "cache"),
        "model_adapters": adapters,
    } | values
    return Settings(**chosen)  # type: ignore[arg-type]


def failure(settings: Settings) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as raised:
        resolve(settings, print)
    assert "\n" not in raised.value.message
    return raised.value


def test_directories_are_taken_as_they_are(model_path: Path, adapter_path: Path, tmp_path: Path) -> None:
    found = resolve(settings(model_path, tmp_path, f"fr={adapter_path},de={adapter_path}"), print)
    assert found.adapters == {"fr": adapter_path, "de": adapter_path}
    assert found.path == model_path


def test_a_hub_id_is_fetched_into_the_cache_directory_at_its_own_revision(
    hub: FakeHub, model_path: Path, tmp_path: Path
) -> None:
    stages: list[str] = []
    chosen = settings(model_path, tmp_path, "fr=org/adapter", model_revision="of-the-model")
    path = resolve(chosen, stages.append).adapters["fr"]
    assert path.is_relative_to(tmp_path / "cache")
    assert path.name == COMMIT
    assert stages == ["fetching org/adapter from the hub"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(hub.downloads())


@pytest.mark.parametrize("source", ["/no/such", "./none", "~/none"])
def test_a_directory_that_is_not_there_is_told(model_path: Path, tmp_path: Path, source: str) -> None:
    error = failure(settings(model_path, tmp_path, f"fr={source}"))
    assert error.message == f"MODEL_ADAPTERS: fr={source}: no such directory"
    assert error.permanent


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_directory_without_an_adapter_is_told(
    model_path: Path, adapter_path: Path, tmp_path: Path, name: str
) -> None:
    (adapter_path / name).unlink()
    error = failure(settings(model_path, tmp_path, f"fr={adapter_path}"))
    assert error.message == f"MODEL_ADAPTERS: fr={adapter_path}: there is no {name} in {adapter_path}"
    assert error.permanent


def test_pickled_weights_are_only_taken_where_they_are_allowed(
    model_path: Path, adapter_path: Path, tmp_path: Path
) -> None:
    (adapter_path / "adapter_model.safetensors").rename(adapter_path / "adapter_model.bin")
    asked = f"fr={adapter_path}"
    error = failure(settings(model_path, tmp_path, asked))
    assert "MODEL_ADAPTERS: fr=" in error.message
    assert "set MODEL_ALLOW_PICKLE=true" in error.message
    allowed = settings(model_path, tmp_path, asked, model_allow_pickle=True)
    assert resolve(allowed, print).adapters == {"fr": adapter_path}


def test_what_the_hub_does_not_have_is_told_by_the_adapters_name(
    hub: FakeHub, model_path: Path, tmp_path: Path
) -> None:
    error = failure(settings(model_path, tmp_path, "fr=org/none"))
    assert error.message.startswith("MODEL_ADAPTERS: fr=org/none is not on the hub, or is private")
    assert error.permanent
    hub.status = 503
    error = failure(settings(model_path, tmp_path, "fr=org/adapter"))
    assert error.message.startswith("MODEL_ADAPTERS: fr=org/adapter cannot be fetched from the hub")
    assert not error.permanent

"""What is damaged or missing is told in one line, for good, by the file's name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from basaran_ops.checkpoint import resolve
from basaran_ops.engine.weights import load_model
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

from ..tiny_models import save_tiny, tiny_model


@pytest.fixture
def path(tiny_path: Path, tmp_path: Path) -> Path:
    """A model that a test may damage."""
    return shutil.copytree(tiny_path, tmp_path / "model")


def load(path: Path, **values: object) -> object:
    chosen = Settings(model=str(path), **values)  # type: ignore[arg-type]
    return load_model(resolve(chosen, print), chosen, torch.device("cpu"))


def failure(path: Path, **values: object) -> str:
    with pytest.raises(ModelLoadError) as raised:
        load(path, **values)
    assert raised.value.permanent
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 400
    return raised.value.message


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard(path: Path) -> None:
    """The weights once more, in several files."""
    (path / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2


def pickle(path: Path) -> Path:
    """The weights once more, pickled."""
    (path / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), path / "pytorch_model.bin")
    return path / "pytorch_model.bin"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_what_is_whole_is_loaded(path: Path) -> None:
    load(path)
    shard(path)
    load(path)


def test_an_empty_directory(tmp_path: Path) -> None:
    assert failure(tmp_path) == f"MODEL={tmp_path}: there is no config.json in this directory"


@pytest.mark.parametrize("content", ["{", "", "\x00\x01"])
def test_a_config_that_is_not_json(content: str, path: Path) -> None:
    (path / "config.json").write_text(content)
    assert f"{path / 'config.json'}" in failure(path)
    assert "not a valid JSON file" in failure(path)


def test_a_config_of_another_shape(path: Path) -> None:
    (path / "config.json").write_text("[]")
    assert f"{path / 'config.json'}" in failure(path)


def test_a_config_with_a_value_of_the_wrong_type(path: Path) -> None:
    edit(path / "config.json", num_hidden_layers="three")
    assert "num_hidden_layers" in failure(path)
    assert f"{path / 'config.json'}" in failure(path)


def test_a_kind_of_model_that_is_not_known(path: Path) -> None:
    edit(path / "config.json", model_type="zork")
    message = failure(path)
    assert message.startswith(f"{path / 'config.json'}: ")
    assert message.endswith("has model type `zork` but Transformers does not recognize this architecture")


def test_weights_that_are_cut_short(path: Path) -> None:
    cut(path / "model.safetensors")
    assert f"{path / 'model.safetensors'} is damaged or cut short" in failure(path)


def test_one_of_several_files_that_is_cut_short(path: Path) -> None:
    shard(path)
    last = max(path.glob("*.safetensors"))
    cut(last)
    assert f"{last} is damaged or cut short" in failure(path)


def test_a_file_of_the_index_that_is_missing(path: Path) -> None:
    shard(path)
    last = max(path.glob("*.safetensors"))
    last.unlink()
    index = path / "model.safetensors.index.json"
    assert failure(path) == f"{index} names {last.name}, which is not there (1 are missing)"


def test_an_index_that_is_not_json(path: Path) -> None:
    shard(path)
    index = path / "model.safetensors.index.json"
    index.write_text("{")
    assert f"{index} is not valid JSON" in failure(path)


def test_a_pointer_instead_of_the_weights(path: Path) -> None:
    (path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    )
    assert failure(path) == f"{path / 'model.safetensors'} is a pointer of Git LFS: run `git lfs pull`"


def test_no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()
    assert "there are no weights in this directory" in failure(path)


def test_weights_of_other_shapes(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(path / "config.json", intermediate_size=96)
    with caplog.at_level(logging.WARNING):
        message = failure(path)
    assert str(path) in message
    assert "is [64, 128] in the weights, but [64, 96] by config.json; 9 tensors differ" in message
    assert not caplog.records


def test_weights_that_lack_a_layer(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(path / "config.json", num_hidden_layers=4)
    with caplog.at_level(logging.WARNING):
        message = failure(path)
    assert message.startswith(f"{path}: the weights lack model.layers.3.")
    assert not caplog.records


def test_weights_with_a_layer_too_many_are_told_of_in_one_line(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(path / "config.json", num_hidden_layers=2)
    with caplog.at_level(logging.WARNING):
        load(path)
    (record,) = caplog.records
    assert "LlamaForCausalLM has no use for model.layers.2." in record.getMessage()
    assert "\n" not in record.getMessage()


def test_no_tokenizer(path: Path) -> None:
    for file in path.glob("token*"):
        file.unlink()
    assert failure(path) == f"{path}: there is no tokenizer in this directory, such as tokenizer.json"


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_no_tokenizer_where_transformers_would_make_one_up(kind: str, tmp_path: Path) -> None:
    from ..architectures import tiny_architecture

    tiny_architecture(kind).save_pretrained(tmp_path)
    assert "there is no tokenizer in this directory" in failure(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_not_json(name: str, path: Path) -> None:
    cut(path / name)
    assert f"{path / name} is not valid JSON" in failure(path)


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", vocab_size=200)
    message = failure(path)
    assert f"{path}: the tokenizer has " in message
    assert "more than the 200 of the model's vocab_size" in message


@pytest.mark.parametrize(
    "damage",
    [cut, lambda file: file.write_text("no GGUF"), lambda file: file.write_bytes(b"GGUF")],
    ids=["cut short", "something else", "its first bytes"],
)
def test_a_damaged_gguf_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    from ..tiny_gguf import write_tiny_gguf

    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    damage(file)
    assert "tiny.gguf" in failure(file, model_cache_dir=str(tmp_path / "cache"))


# -- pickled weights ----------------------------------------------------------------------------------


def test_pickled_weights_are_refused_by_name(path: Path) -> None:
    pickle(path)
    message = failure(path)
    assert "there are only pickled weights (pytorch_model.bin)" in message
    assert "set MODEL_ALLOW_PICKLE=true" in message


def test_pickled_weights_are_loaded_where_allowed_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = pickle(path)
    load(path, model_allow_pickle=True)
    assert f"MODEL_ALLOW_PICKLE: loading {file}" in caplog.text


def test_safetensors_are_preferred_to_pickled_weights(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path / "pytorch_model.bin").write_bytes(b"would not load")
    load(path, model_allow_pickle=True)
    assert "MODEL_ALLOW_PICKLE" not in caplog.text


class Bomb:
    """Runs code where it is unpickled without restriction."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickled_code_does_not_run_even_where_pickled_weights_are_allowed(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model.norm.weight": Bomb()}, pickle(path))
    assert str(path) in failure(path, model_allow_pickle=True)
    assert not Path("exploded").exists()


def test_pickled_weights_that_are_cut_short(path: Path) -> None:
    file = pickle(path)
    cut(file)
    assert failure(path, model_allow_pickle=True) == f"{file} is damaged or cut short"


# -- code that comes with a model ---------------------------------------------------------------------


@pytest.fixture
def own_code(path: Path) -> Path:
    """A model whose class is in its directory."""
    (path / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    edit(path / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=auto_map)
    return path


def test_code_that_comes_with_a_model_does_not_run_by_itself(own_code: Path) -> None:
    (own_code / "modeling_own.py").write_text("raise SystemExit('it ran')\n")
    assert failure(own_code) == (
        f"{own_code / 'config.json'}: the model needs code that comes with it: set "
        "MODEL_TRUST_REMOTE_CODE=true if you trust its author"
    )


def test_code_that_comes_with_a_model_runs_where_allowed_with_a_warning(
    own_code: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = load(own_code, model_trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"
    assert "MODEL_TRUST_REMOTE_CODE: code that comes with the model" in caplog.text


def test_a_failure_of_a_models_own_code_is_one_line(
    own_code: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (own_code / "modeling_own.py").write_text("raise AttributeError('made for another release')\n")
    assert "made for another release" in failure(own_code, model_trust_remote_code=True)

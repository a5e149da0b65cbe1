from __future__ import annotations

from pathlib import Path

import pytest

from basaran_ops.checkpoint import resolve
from basaran_ops.engine.loader import load_engine
from basaran_ops.errors import ModelLoadError
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings
from basaran_ops.text.tokenizer import Tokenizer

from ..engine.engines import drain
from ..tiny_gguf import write_tiny_gguf
from ..tiny_models import EOS, generate, save_tiny, tiny_model, tiny_tokenizer


def settings(tmp_path: Path, **values: object) -> Settings:
    small = {"engine_slots": 2, "engine_token_budget": 64, "engine_context_length": 128}
    return Settings(model_cache_dir=str(tmp_path / "cache"), **small | values)  # type: ignore[arg-type]


def greedy(settings: Settings, prompt: tuple[int, ...]) -> list[int]:
    engine, _ = load_engine(resolve(settings, print), settings)
    engine.add(0, prompt, SamplingParams(max_tokens=12, temperature=0), None)
    return drain(engine)[0]


def test_a_directory_is_served_as_it_is(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", eos=None)
    got = greedy(settings(tmp_path, model=str(path), model_dtype="float32"), (5, 6, 7))
    assert got == generate(tiny_model("llama"), (5, 6, 7), 12)


def test_a_gguf_file_gives_the_tokens_of_the_model_it_was_made_from(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    model.generation_config.eos_token_id = EOS
    chosen = settings(tmp_path, model=str(tmp_path / "tiny.gguf"), model_dtype="float32")
    assert greedy(chosen, (5, 6, 7)) == generate(model, (5, 6, 7), 12)


def test_a_gguf_tokenizer_splits_digits_and_survives_a_restart(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    stages: list[str] = []
    chosen = settings(tmp_path, model=str(tmp_path / "tiny.gguf"))
    first = resolve(chosen, stages.append)
    second = resolve(chosen, stages.append)
    assert first == second
    assert stages == ["converting the tokenizer of tiny.gguf"]
    tokenizer = Tokenizer.load(str(first.tokenizer_path))
    assert len(tokenizer.encode("2024")) == 4
    text = "the cat 😀 中文"
    assert tokenizer.encode(text) == Tokenizer(tiny_tokenizer()).encode(text)


@pytest.mark.parametrize("name", ["/no/such/model", "./no-such", "model.gguf", "~/nothing"])
def test_a_path_that_is_not_there_is_refused_for_good(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such file or directory") as raised:
        resolve(settings(tmp_path, model=name), print)
    assert raised.value.permanent


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"there is no config\.json"):
        resolve(settings(tmp_path, model=str(tmp_path)), print)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):
        resolve(settings(tmp_path, model=str(tmp_path / "x.gguf")), print)


def test_a_name_that_no_hub_could_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither a file nor a hub id"):
        resolve(settings(tmp_path, model="a b/c/d"), print)


def test_a_hub_model_that_is_not_in_the_cache_is_refused_when_downloads_are_off(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="not in the local cache") as raised:
        resolve(settings(tmp_path, model="user/repo", model_local_files_only=True), print)
    assert raised.value.permanent


def test_a_default_model_that_was_never_fetched_is_refused_when_downloads_are_off(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="was never fetched"):
        resolve(settings(tmp_path, model_local_files_only=True), print)


@pytest.mark.parametrize("bits", ["model_load_in_8bit", "model_load_in_4bit"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_quantized_weights_still_know_the_capital_of_france(
    bits: str, default_model_path: Path, tmp_path: Path
) -> None:
    chosen = settings(tmp_path, model=str(default_model_path), **{bits: True})
    tokenizer = Tokenizer.load(str(default_model_path))
    tokens = greedy(chosen, tuple(tokenizer.encode("The capital of France is")))
    assert "Paris" in tokenizer.decode(tokens)

"""A recording that was kept is the recording, or is made again."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from basaran_ops.checkpoint.resolve import resolve
from basaran_ops.engine import kernels, recording_file
from basaran_ops.engine.loader import load_engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.recording_file import RecordingFile
from basaran_ops.settings import Settings

from ..tiny_models import CONFIGS, save_tiny, tiny_model
from .engines import wish
from .test_graph import compiled, logits_of, operations

PROMPT, CHUNKS = list(range(3, 40)), [20, 1, 1, 15]


@pytest.fixture(autouse=True)
def _kept_however_few_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_file, "FEWEST_NODES", 1)


def kept(model: PreTrainedModel, directory: Path) -> RecordingFile:
    source = directory / "weights"
    if not source.exists():
        source.write_text("some")
    return RecordingFile.of(model, source, directory / "recordings")


def run(model: PreTrainedModel, file: RecordingFile | None) -> tuple[PackedRunner, torch.Tensor]:
    runner = PackedRunner(model, wish(), compiled=True, kept=file)
    logits = logits_of(runner, PROMPT, CHUNKS)
    # Its attention goes with the runner.
    model.set_attn_implementation("eager")
    return runner, logits


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"gpt_oss"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(name).to(dtype)
    file = kept(model, tmp_path)
    first, expected = run(model, file)
    assert not file.was_read
    second, logits = run(model, file)
    assert file.was_read
    assert operations(compiled(first)) == operations(compiled(second))
    assert torch.equal(logits, expected)


def test_it_reads_the_weights_of_the_model_at_hand(tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    run(model, kept(model, tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    _, expected = run(model, None)
    file = kept(model, tmp_path)
    _, logits = run(model, file)
    assert file.was_read
    assert torch.equal(logits, expected)


def test_a_loaded_engine_keeps_its_recording_and_says_what_it_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        model=str(save_tiny(tmp_path / "model")),
        model_cache_dir=str(tmp_path / "cache"),
        engine_slots=2,
        engine_context_length=64,
    )
    stages: list[str] = []
    for how in ("recorded", "read"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            load_engine(resolve(settings, stages.append), settings, stages.append)
        assert f"operations, {how} in" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache/basaran_ops/recordings").iterdir()] == [".safetensors"]
    start = [f"loading {tmp_path / 'model'}", "trying how LlamaForCausalLM runs"]
    assert stages == 2 * [*start, "recording and packing its forward"]


CHANGES: dict[str, Callable[[PreTrainedModel, Path], object]] = {
    "another type": lambda model, _: model.to(torch.bfloat16),
    "another config": lambda model, _: setattr(model.config, "rms_norm_eps", 0.5),
    "other weights": lambda _, directory: (directory / "weights").write_text("others"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_forward_changes_the_file(change: str, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    before = kept(model, tmp_path)
    assert before._path == kept(model, tmp_path)._path
    CHANGES[change](model, tmp_path)
    assert before._path != kept(model, tmp_path)._path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_make(path: Path) -> None:
    save_file({}, path, {"graph": json.dumps({"nodes": []})})


def without_a_weight(path: Path) -> None:
    change(path, lambda graph: graph["weights"].popitem())


def with_a_function_of_pythons(path: Path) -> None:
    change(path, lambda graph: graph["nodes"][-2].__setitem__(1, "os.system.default"))


def change(path: Path, edit: Callable[[dict[str, dict[str, str]]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        graph = json.loads(file.metadata()["graph"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(graph)
    save_file(tensors, path, {"graph": json.dumps(graph)})


@pytest.mark.parametrize("damage", [cut, of_another_make, without_a_weight, with_a_function_of_pythons])
def test_a_file_that_cannot_be_read_is_written_again(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    file = kept(model, tmp_path)
    _, expected = run(model, file)
    damage(file._path)
    with caplog.at_level(logging.INFO):
        _, logits = run(model, file)
    assert "cannot be read" in caplog.text
    assert torch.equal(logits, expected)
    assert not file.was_read
    run(model, file)
    assert file.was_read


def test_a_recording_that_gives_other_logits_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    file = kept(model, tmp_path)
    _, expected = run(model, file)

    def halve_the_scale(graph: dict[str, list[list[float]]]) -> None:
        for call in graph["calls"]:
            call[2] /= 4

    change(file._path, halve_the_scale)  # type: ignore[arg-type]
    runner, logits = run(model, file)
    assert "the recording that was kept is of no use" in caplog.text
    assert torch.equal(logits, expected)
    assert runner._compiled is not None
    run(model, file)
    assert file.was_read


def test_a_recording_that_is_not_used_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "silu_gate", lambda gate, up: gate * up)
    runner, _ = run(tiny_model("llama"), kept(tiny_model("llama"), tmp_path))
    assert runner._compiled is None
    assert list((tmp_path / "recordings").iterdir()) == []


def test_where_nothing_can_be_written_it_is_recorded_in_every_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    (tmp_path / "recordings").touch()
    file = kept(model, tmp_path)
    with caplog.at_level(logging.INFO):
        runner, _ = run(model, file)
    assert "its recording is not kept" in caplog.text
    assert compiled(runner)


def test_nothing_is_left_of_what_could_not_be_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    model = tiny_model("llama")
    run(model, kept(model, tmp_path))
    assert list((tmp_path / "recordings").iterdir()) == []


def test_the_files_that_were_not_used_for_the_longest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_file, "MOST_FILES", 2)
    models = [tiny_model(name) for name in ("llama", "qwen3", "gemma")]
    files = [kept(model, tmp_path) for model in models]
    for model, file in zip(models, files, strict=True):
        run(model, file)
    assert [file._path.exists() for file in files] == [False, True, True]


def test_a_small_graph_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_file, "FEWEST_NODES", 1000)
    model = tiny_model("llama")
    run(model, kept(model, tmp_path))
    assert not (tmp_path / "recordings").exists()

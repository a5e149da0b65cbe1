"""The page on sizing: each of its formulas, evaluated as it stands there, is what the code comes to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from basaran_ops import LibraryModel, load_model
from basaran_ops.checkpoint import resolve
from basaran_ops.engine import runners
from basaran_ops.engine.context_fit import ContextWish, fit_context
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.kv_cache import LayerShape
from basaran_ops.engine.loader import load_engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.sequence import Batch
from basaran_ops.pool.placement import place
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings

from .tiny_models import VOCAB, save_tiny

PAGE = (Path(__file__).parents[1] / "docs" / "sizing.md").read_text()
FORMULAS = dict(
    re.fullmatch(r"(\w+) = (.*?)\s*(?:#.*)?", line).groups()  # type: ignore[union-attr]
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
)


def value(name: str, **given: float) -> Any:
    """What the page's formula comes to."""
    return eval(FORMULAS[name], {"__builtins__": {"min": min, "int": int}}, given)


LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 16
"""Of the tiny Llama."""


@pytest.fixture(scope="module")
def settings(tiny_path: Path) -> Settings:
    return Settings(
        model=str(tiny_path),
        model_dtype="bfloat16",
        engine_slots=5,
        engine_context_length=300,
        engine_threads=1,
    )


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    return load_engine(resolve(settings, lambda stage: None), settings)[0]


@pytest.fixture(scope="module")
def runner(engine: Engine) -> PackedRunner:
    assert isinstance(engine._runner, PackedRunner)
    return engine._runner


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_weights(tiny_path: Path, dtype: torch.dtype, size: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=dtype)
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert value("weights", parameters=model.num_parameters(), weight_bytes=size) == held


def test_keys_and_values(runner: PackedRunner) -> None:
    token = value("token", layers=LAYERS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, kv_bytes=2)
    cache = runner._attention.cache
    assert cache is not None
    held = sum(tensor.nbytes for tensors in (cache.keys, cache.values) for tensor in tensors.values())
    assert value("kv_cache", slots=5, context=300, token=token) == held


@pytest.mark.parametrize("positions", [512, 100_000])
@pytest.mark.parametrize("free", [50_000_000, 400_000_000])
def test_context(positions: int, free: int) -> None:
    token = LayerShape(2, 16, 2, 16, torch.bfloat16, torch.device("cpu")).bytes_per_token * LAYERS
    wish = ContextWish(slots=32, asked=None, model_length=positions, memory_fraction=0.5)
    fits = fit_context(wish, slot_token_bytes=token, slot_bytes=0, available=free)
    assert value("context", positions=positions, free=free, fraction=0.5, slots=32, token=token) == fits


def test_context_of_an_engine(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 3_000_000
    monkeypatch.setattr("basaran_ops.engine.packed_runner.available_bytes", lambda *devices: free)
    settings = Settings(model=str(tiny_path), model_dtype="bfloat16", engine_slots=8, engine_kv_fraction=1.0)
    monkeypatch.setattr(runners, "_model_length", lambda config: 8192)
    _, info = load_engine(resolve(settings, lambda stage: None), settings)
    token = value("token", layers=LAYERS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, kv_bytes=2)
    wanted = value("context", positions=8192, free=free, fraction=1.0, slots=8, token=token)
    assert info.context_length == wanted == 768


def test_logits(engine: Engine, runner: PackedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.Tensor] = []
    run = runner.run

    def watched(batch: Batch) -> torch.Tensor:
        held.append(run(batch))
        return held[-1]

    monkeypatch.setattr(runner, "run", watched)
    for number in range(4):
        engine.add(number, (5, 6, 7), SamplingParams(max_tokens=2), None)
    while engine.has_work:
        engine.step()
    assert [logits.dtype for logits in held] == [torch.float32] * 2
    assert held[-1].nbytes == value("logits", rows=4, vocabulary=VOCAB)


def test_sequences_and_threads() -> None:
    settings = Settings(engine_slots=24, engine_replicas=3, server_queue_limit=40)
    given = {"slots": 24, "replicas": 3, "queue": 40}
    assert value("sequences", **given) == settings.capacity
    assert value("threads", **given) == settings.threads


def test_cores_and_gpus() -> None:
    settings = Settings(engine_replicas=3, gpus_per_replica=2, engine_device="cuda")
    devices = [p.environ["CUDA_VISIBLE_DEVICES"] for p in place(settings, {}, frozenset(range(12)), 6)]
    assert value("gpus", replicas=3, gpus_per_replica=2) == len(",".join(devices).split(","))
    settings = Settings(engine_replicas=3, engine_device="cpu")
    shares = place(settings, {}, frozenset(range(12)), 0)
    assert {share.threads for share in shares} == {value("threads_per_engine", cores=12, replicas=3)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibraryModel]:
    path = save_tiny(tmp_path_factory.mktemp("sizing") / "model", eos=None, max_position_embeddings=1024)
    with load_model(
        path, engine_slots=2, engine_token_budget=64, engine_threads=1, engine_prefix_cache=False
    ) as model:
        yield model


@pytest.mark.parametrize("prompt", [1, 64, 65, 200])
def test_steps_to_the_first_token(model: LibraryModel, prompt: int) -> None:
    before = model.stats.step
    assert list(model([5] * prompt, max_tokens=1))
    steps = value("first_token_steps", prompt=prompt, budget=64)
    assert model.stats.step - before == steps == math.ceil(prompt / 64)


def test_the_table_is_what_the_formulas_say() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if re.match(r"\| \w.*GiB \|$", line)
    ]
    assert len(rows) == 5
    for name, *cells in rows:
        layers, kv_heads, head_dim, told, total = (cell.replace(",", "") for cell in cells)
        given = {"layers": int(layers), "kv_heads": int(kv_heads), "head_dim": int(head_dim)}
        token = value("token", **given, kv_bytes=2)
        assert int(told) == token, name
        cache = value("kv_cache", slots=32, context=2048, token=token)
        assert total == f"{cache / 2**30:.2f} GiB", name


def test_no_formula_is_unchecked() -> None:
    assert set(re.findall(r'value\(\s*"(\w+)"', Path(__file__).read_text())) == FORMULAS.keys()

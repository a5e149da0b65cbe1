"""A recorded and fused forward is the model's own, or is refused."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from basaran_ops.engine import kernels
from basaran_ops.engine.attention import SlotAttention
from basaran_ops.engine.graph import CompiledForward, record
from basaran_ops.engine.linear import PackedLinear
from basaran_ops.engine.loader import load_engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.recording import GraphUnfit
from basaran_ops.engine.sequence import Batch, Chunk, Sequence
from basaran_ops.engine.weights import Checkpoint
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings

from ..tiny_models import CONFIGS, VOCAB, save_tiny, tiny_model
from .engines import wish


def logits_of(runner: PackedRunner, prompt: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits after each chunk of a prompt; a chunk of one token is a decode row."""
    sequence = Sequence(0, tuple(prompt), SamplingParams(max_tokens=1), None)
    rows, start = [], 0
    for length in chunks:
        chunk = Chunk(sequence, 2, start, length)
        batch = Batch((chunk,), ()) if length == 1 else Batch((), (chunk,))
        rows.append(runner.run(batch))
        start += length
    return torch.cat(rows)


def plain_logits(model: PreTrainedModel, prompt: list[int], chunks: list[int]) -> torch.Tensor:
    logits = logits_of(PackedRunner(model, wish()), prompt, chunks)
    # Its attention goes with the runner.
    model.set_attn_implementation("eager")
    return logits


def compiled(runner: PackedRunner) -> CompiledForward:
    forward = runner._compiled
    assert forward is not None
    return forward


def operations(forward: CompiledForward) -> list[str]:
    return [getattr(s.operation, "__name__", type(s.operation).__name__) for s in forward._steps]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_logits_are_those_of_the_forward_as_it_is(name: str) -> None:
    model = tiny_model(name)
    prompt = [Random(3).randrange(VOCAB) for _ in range(60)]
    chunks = [1, 2, 30, 1, 1, 25]
    plain = plain_logits(model, prompt, chunks)
    fused = logits_of(PackedRunner(model, wish(), compiled=True), prompt, chunks)
    assert (fused - plain).norm() / plain.norm() < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gpt2", "gpt_neox", "mistral", "gemma2"])
def test_these_are_recorded(name: str) -> None:
    compiled(PackedRunner(tiny_model(name), wish(), compiled=True))


def test_a_layer_of_llama_is_as_many_operations_as_it_has_parts() -> None:
    names = operations(compiled(PackedRunner(tiny_model("llama"), wish(), compiled=True)))
    layers = 3
    expected = {
        "packed_linear": 4 * layers + 1,
        "rotate": 2 * layers,
        "add_rms_norm": 2 * layers,
        "rms_norm": 1,
        "silu_gate": layers,
        "slot_attention": layers,
    }
    assert {name: names.count(name) for name in expected} == expected
    assert not {"neg", "rsqrt", "silu"} & set(names)


@pytest.mark.parametrize("name", ["llama", "gemma", "qwen3"])
def test_bfloat16_is_as_near_to_float32_as_the_forward_as_it_is(name: str) -> None:
    model = tiny_model(name).to(torch.bfloat16)
    prompt, chunks = list(range(5, 45)), [30, 1, 9]
    plain = plain_logits(model, prompt, chunks)
    runner = PackedRunner(model, wish(), compiled=True)
    fused = logits_of(runner, prompt, chunks)
    exact = plain_logits(copy.deepcopy(model).float(), prompt, chunks)
    assert (fused - exact).norm() < 1.2 * (plain - exact).norm()


def test_without_compiled_functions_it_is_recorded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", False)
    model = tiny_model("llama")
    runner = PackedRunner(model, wish(), compiled=True)
    assert "rms_norm" not in operations(compiled(runner))
    prompt = list(range(3, 40))
    plain = plain_logits(model, prompt, [20, 1, 16])
    assert (logits_of(runner, prompt, [20, 1, 16]) - plain).norm() / plain.norm() < 1e-5


def test_registers_are_used_again() -> None:
    forward = compiled(PackedRunner(tiny_model("llama"), wish(), compiled=True))
    changing = {step.place for step in forward._steps}
    assert len(changing) < 20 < forward.size


def test_a_pass_leaves_nothing_behind() -> None:
    forward = compiled(PackedRunner(tiny_model("llama"), wish(), compiled=True))
    written = {step.place for step in forward._steps} | set(forward._inputs)
    assert all(forward._registers[place] is None for place in written)


# -- letting the model's weights go ----------------------------------------------------------------------


def weight_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_an_exclusive_runner_keeps_one_copy_of_the_weights(tied: bool) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    embedding = model.model.embed_tokens.weight.numel() * 4
    prompt = list(range(3, 40))
    plain = plain_logits(model, prompt, [20, 17])
    runner = PackedRunner(model, wish(), compiled=True, exclusive=True)
    assert weight_bytes(model) <= embedding + 64 * 4 * 10
    assert (logits_of(runner, prompt, [20, 17]) - plain).norm() / plain.norm() < 1e-5


def test_a_loaded_engine_keeps_one_copy(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    settings = Settings(engine_slots=2, engine_context_length=64, model_dtype="float32")
    engine, _ = load_engine(Checkpoint(path, path), settings)
    runner = engine._runner
    assert isinstance(runner, PackedRunner)
    embedding = runner._model.get_input_embeddings().weight
    norms = 64 * 4 * 10
    assert weight_bytes(runner._model) <= embedding.numel() * 4 + norms
    if Path("/proc/self/maps").exists():
        assert str(path) not in Path("/proc/self/maps").read_text()


# -- what cannot be recorded -----------------------------------------------------------------------------


class Forward(nn.Module):
    """The part of a model that is recorded, doing what it is told."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.body = body

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool,
        logits_to_keep: torch.Tensor,
    ) -> Any:
        hidden = self.body(self.embedding(input_ids))
        return SimpleNamespace(logits=hidden[:, logits_to_keep])


def table(hidden: torch.Tensor) -> torch.Tensor:
    return hidden + torch.tensor([[[float(number)] for number in range(hidden.shape[1])]])


UNFIT = {
    "a way chosen by a value": lambda hidden: hidden if hidden.sum() > 0 else -hidden,
    "a way chosen by the number of tokens": lambda hidden: hidden.neg() if hidden.shape[1] > 8 else hidden,
    "more work for more tokens": lambda hidden: sum(hidden.split(1, dim=1)) + hidden,
    "a table as long as the input": table,
    "one token less": lambda hidden: hidden[:, : hidden.shape[1] - 1] + hidden[:, 1:],
    "half of the tokens": lambda hidden: hidden[:, : hidden.shape[1] // 2].repeat(1, 2, 1),
    "at most 16 tokens": lambda hidden: hidden + hidden[:, : min(hidden.shape[1], 16)].sum(),
    "the square of the number of tokens": lambda hidden: hidden + hidden.shape[1] ** 2,
    "the inverse of the number of tokens": lambda hidden: hidden * (1 / hidden.shape[1]),
}


@pytest.mark.parametrize("case", sorted(UNFIT))
def test_what_depends_on_more_than_sizes_is_refused(case: str) -> None:
    with pytest.raises(GraphUnfit):
        record(Forward(UNFIT[case]), SlotAttention())  # type: ignore[arg-type]


SIZES = {
    "the tokens": lambda hidden: hidden.view(hidden.shape[1], 2, 4).transpose(0, 1).reshape(1, -1, 8),
    "a multiple of the tokens": lambda hidden: hidden.view(1, hidden.shape[1] * 2, 4).reshape(1, -1, 8) * 2,
    "an arange": lambda hidden: hidden * torch.arange(hidden.shape[1])[None, :, None],
}


def test_what_is_written_in_place_starts_afresh_in_every_pass() -> None:
    scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def body(hidden: torch.Tensor) -> torch.Tensor:
        total = scale.clone()
        total += hidden.sum(dim=(0, 1))
        return hidden * total

    model = Forward(body)
    forward = record(model, SlotAttention())  # type: ignore[arg-type]
    ids = torch.arange(5)[None]
    expected = model(ids, ids, False, ids[0]).logits
    for _ in range(2):
        assert torch.allclose(forward(ids, ids, ids[0]), expected)


def test_a_copy_that_is_asked_for_is_made() -> None:
    def body(hidden: torch.Tensor) -> torch.Tensor:
        other = hidden.to(hidden.dtype, copy=True)
        other.mul_(2)
        return hidden + other

    model = Forward(body)
    ids = torch.arange(5)[None]
    expected = model(ids, ids, False, ids[0]).logits
    assert torch.equal(record(model, SlotAttention())(ids, ids, ids[0]), expected)  # type: ignore[arg-type]


def test_weights_are_folded_beside_what_is_written_in_place() -> None:
    scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def body(hidden: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(8)
        total += hidden.sum(dim=(0, 1))
        return hidden * total * (1 + scale)

    model = Forward(body)
    forward = record(model, SlotAttention())  # type: ignore[arg-type]
    assert len([name for name in operations(forward) if name == "add"]) == 0
    ids = torch.arange(5)[None]
    expected = model(ids, ids, False, ids[0]).logits
    assert torch.allclose(forward(ids, ids, ids[0]), expected)


def test_a_fused_operation_that_raises_leaves_the_model_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: object) -> None:
        raise RuntimeError("view size is not compatible")

    monkeypatch.setattr(kernels, "silu_gate", raises)
    runner = PackedRunner(tiny_model("llama"), wish(), compiled=True)
    assert runner._compiled is None


@pytest.mark.parametrize("fit", [True, False])
def test_what_a_forward_keeps_in_its_modules_is_put_back(fit: bool) -> None:
    model = Forward(None)

    def body(hidden: torch.Tensor) -> torch.Tensor:
        model.kept = model.table = model.table.to(torch.float32) + hidden[0, 0]
        return hidden if fit or hidden.sum() > 0 else -hidden

    model.body = body
    model.register_buffer("table", table := torch.ones(8))
    if fit:
        record(model, SlotAttention())  # type: ignore[arg-type]
    else:
        with pytest.raises(GraphUnfit):
            record(model, SlotAttention())  # type: ignore[arg-type]
    assert model.table is table
    assert not hasattr(model, "kept")


@pytest.mark.parametrize("case", sorted(SIZES))
@pytest.mark.parametrize("tokens", [1, 2, 7, 30])
def test_what_depends_on_sizes_follows_them(case: str, tokens: int) -> None:
    model = Forward(SIZES[case])
    forward = record(model, SlotAttention())  # type: ignore[arg-type]
    ids = torch.arange(tokens)[None] + 3
    rows = torch.tensor([tokens - 1, 0])
    expected = model(ids, ids, False, rows).logits
    assert torch.equal(forward(ids, ids, rows), expected)


def test_a_recording_that_gives_other_logits_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "silu_gate", lambda gate, up: gate * up)
    model, prompt = tiny_model("llama"), list(range(3, 20))
    plain = plain_logits(model, prompt, [10, 7])
    with caplog.at_level(logging.INFO):
        runner = PackedRunner(model, wish(), compiled=True)
    assert runner._compiled is None
    assert "its forward runs as it is" in caplog.text
    torch.testing.assert_close(logits_of(runner, prompt, [10, 7]), plain, rtol=1e-4, atol=1e-4)


# -- the parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_layers_that_read_the_same_become_one(bias: bool) -> None:
    weights = [torch.randn(outputs, 24) for outputs in (16, 8, 8)]
    biases = [torch.randn(outputs) for outputs in (16, 8, 8)] if bias else []
    packed = PackedLinear(weights, biases)
    x = torch.randn(1, 5, 24)
    for number, part in enumerate(packed.split(packed(x))):
        expected = nn.functional.linear(x, weights[number], biases[number] if bias else None)
        assert torch.allclose(part, expected, atol=1e-5)


def test_a_rotation_of_other_pairs_is_left_alone() -> None:
    """GPT-J's pairs are neighbours, not halves."""

    def body(hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.view(1, hidden.shape[1], 1, 8).transpose(1, 2)
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        cos = hidden.cos().unsqueeze(1)
        return (x * cos + turned * cos).transpose(1, 2).reshape(1, -1, 8)

    model = Forward(body)
    forward = record(model, SlotAttention())  # type: ignore[arg-type]
    assert "rotate" not in operations(forward)
    ids = torch.arange(5)[None]
    assert torch.allclose(forward(ids, ids, ids[0]), model(ids, ids, False, ids[0]).logits)

"""A compiled run of operations against torch's own, in bfloat16, and against itself in other company."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from basaran_ops.engine import forward, fusion
from basaran_ops.engine.attention import SlotAttention
from basaran_ops.engine.forward import PanelLinear, takes
from basaran_ops.engine.linear import PackedLinear
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.sequence import Batch, Chunk, Sequence
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import tiny_model
from .engines import wish
from .test_graph import compiled, logits_of, operations, plain_logits

compiled_here = pytest.mark.skipif(
    not forward.available, reason="this processor has no bfloat16 instructions, or AMX, which oneDNN uses"
)

WIDE: dict[str, Any] = {"head_dim": 32}


def wide_model(name: str, **changes: Any) -> PreTrainedModel:
    """A tiny model in bfloat16 whose heads are as wide as the compiled attention wants them."""
    return tiny_model(name, **(WIDE | changes)).to(torch.bfloat16)


def errors(model: PreTrainedModel, chunks: list[int]) -> tuple[float, float]:
    """How far the compiled logits, and those of the model as it is, are from float32's, over some prompts."""
    prompts = [[(n * 13 + (7 + n) * i * i + 3 * i) % 300 + 5 for i in range(sum(chunks))] for n in range(6)]
    runner = PackedRunner(copy.deepcopy(model), wish(), compiled=True)
    assert compiled(runner).programs
    fused = torch.cat([logits_of(runner, prompt, chunks) for prompt in prompts])
    plain = torch.cat([plain_logits(copy.deepcopy(model), prompt, chunks) for prompt in prompts])
    exact = torch.cat([plain_logits(copy.deepcopy(model).float(), prompt, chunks) for prompt in prompts])
    return (fused - exact).norm().item(), (plain - exact).norm().item()


# -- whether ---------------------------------------------------------------------------------------------


def test_it_takes_bfloat16_with_an_even_number_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "available", True)
    assert takes(torch.empty(3, 8, dtype=torch.bfloat16))
    assert not takes(torch.empty(3, 7, dtype=torch.bfloat16))
    assert not takes(torch.empty(3, 8))
    assert not takes(torch.empty(3, 8, dtype=torch.bfloat16, device="meta"))
    monkeypatch.setattr(forward, "available", False)
    assert not takes(torch.empty(3, 8, dtype=torch.bfloat16))


def test_without_it_the_operations_stay_single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "available", False)
    runner = PackedRunner(wide_model("llama"), wish(), compiled=True)
    assert not compiled(runner).programs
    assert "rms_norm" in operations(compiled(runner))


@compiled_here
def test_llama_is_one_run_after_its_embedding_and_its_angles() -> None:
    runner = PackedRunner(wide_model("llama"), wish(), compiled=True)
    names = operations(compiled(runner))
    assert names[-2:] == ["run", "getitem"]
    assert not {"slot_attention", "panel_linear", "rotate"} & set(names)
    [program] = compiled(runner).programs
    # Four products, two rotations, two norms, a gate and attention a layer; the first norm, the wanted rows
    # of the last attention and of what is added to it, and the head.
    assert program.size == 10 * 3 + 4


@compiled_here
def test_operations_that_c_does_not_know_stand_between_runs() -> None:
    """Attention over heads of 16 columns, for one."""
    names = operations(compiled(PackedRunner(tiny_model("llama").to(torch.bfloat16), wish(), compiled=True)))
    assert names.count("run") == names.count("slot_attention") + 1


# -- numbers ---------------------------------------------------------------------------------------------


@compiled_here
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (64, 32), (66, 33), (576, 100), (130, 15)])
@pytest.mark.parametrize("rows", [1, 2, 5, 11, 12, 13, 24, 37])
def test_products(inputs: int, outputs: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weights = [torch.randn(outputs, inputs, generator=generator).bfloat16() for _ in range(2)]
    biases = [torch.randn(outputs, generator=generator).bfloat16() for _ in range(2)]
    x = torch.randn(1, rows, inputs, generator=generator).bfloat16()
    for given in ([], biases):
        layer = PanelLinear(weights, given)
        for found, weight, bias in zip(
            layer.split(layer(x)), weights, given or [torch.zeros(outputs)] * 2, strict=True
        ):
            expected = x.float() @ weight.float().T + bias.float()
            assert (found.float() - expected).norm() < 4e-3 * expected.norm()


@compiled_here
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gemma2", "mistral"])
@pytest.mark.parametrize("chunks", [[1] * 9, [40, 1, 1], [7, 33, 1, 200, 1], [300, 1, 1, 100]])
def test_logits_are_as_near_to_float32_as_the_models_own(name: str, chunks: list[int]) -> None:
    fused, plain = errors(wide_model(name), chunks)
    assert fused < 1.25 * plain


@compiled_here
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1), (10, 2)])
@pytest.mark.parametrize("dim", [32, 64, 96, 256])
def test_any_number_of_query_heads_shares_a_key_head(heads: tuple[int, int], dim: int) -> None:
    changes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": dim}
    changes |= {"num_hidden_layers": 1, "hidden_size": 16 * heads[0]}
    fused, plain = errors(wide_model("llama", **changes), [90, 1, 68, 1])
    assert fused < 1.25 * plain


@compiled_here
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_sinks_take_part_in_the_softmax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_call = SlotAttention.__call__
    sinks = torch.tensor([2.0, -1.0, 5.0, 0.5])

    def with_sinks(self: SlotAttention, *args: Any, **kwargs: Any) -> Any:
        return plain_call(self, *args, **kwargs | {"s_aux": sinks})

    monkeypatch.setattr(SlotAttention, "__call__", with_sinks)
    monkeypatch.setattr(PackedRunner, "_compare", lambda *_: None)  # the model alone knows no sinks
    fused, plain = errors(wide_model(name), [150, 1, 143, 1])
    assert fused < 1.25 * plain


@compiled_here
def test_other_head_widths_are_attended_by_torch() -> None:
    runner = PackedRunner(tiny_model("llama").to(torch.bfloat16), wish(), compiled=True)
    assert "slot_attention" in operations(compiled(runner))


@compiled_here
def test_results_outside_of_a_run_have_the_graphs_shapes() -> None:
    """Heads of 16 columns: queries, keys and values leave the run for torch's attention."""
    fused, plain = errors(tiny_model("llama").to(torch.bfloat16), [30, 1, 9])
    assert fused < 1.25 * plain


# -- the same in every company ---------------------------------------------------------------------------


def sequence_of(number: int, length: int) -> Sequence:
    tokens = tuple((number * 31 + 7 * i) % 300 + 5 for i in range(length))
    return Sequence(number, tokens, SamplingParams(max_tokens=1), None)


@compiled_here
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_a_rows_logits_do_not_depend_on_the_batch_or_on_chunks(name: str) -> None:
    """To the bit: greedy tokens are those of the prompt alone even where two are nearly as likely."""
    runner = PackedRunner(wide_model(name), wish(slots=16), compiled=True)
    lengths = [3, 70, 130, 260, 64, 65, 200, 1, 12, 300, 33, 90, 128, 5]
    sequences = [sequence_of(number, length + 1) for number, length in enumerate(lengths)]
    alone = []
    for sequence, length in zip(sequences, lengths, strict=True):
        runner.run(Batch((), (Chunk(sequence, 0, 0, length),)))
        alone.append(runner.run(Batch((Chunk(sequence, 0, length, 1),), ()))[0])
    chunks = [
        Chunk(sequence, slot, first, min(48, length - first))
        for slot, (sequence, length) in enumerate(zip(sequences, lengths, strict=True))
        for first in range(0, length, 48)
    ]
    for first in range(0, 336, 48):
        together = tuple(chunk for chunk in chunks if chunk.start == first)
        if together:
            runner.run(Batch((), together))
    rows = tuple(
        Chunk(sequence, slot, length, 1)
        for slot, (sequence, length) in enumerate(zip(sequences, lengths, strict=True))
    )
    logits = runner.run(Batch(rows, ()))
    for row, expected in zip(logits, alone, strict=True):
        assert torch.equal(row, expected)


@compiled_here
def test_one_thread_gives_what_two_give() -> None:
    model, prompt = wide_model("llama"), list(range(5, 200))
    runner = PackedRunner(model, wish(), compiled=True)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(logits_of(runner, prompt, [150, 1, 43, 1]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# -- weights ---------------------------------------------------------------------------------------------


@compiled_here
def test_an_exclusive_runner_lets_the_models_weights_go() -> None:
    model = wide_model("llama")
    runner = PackedRunner(model, wish(), compiled=True, exclusive=True)
    kept = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert kept == model.model.embed_tokens.weight.numel()
    layers = compiled(runner).linears
    assert len(layers) == 4 * 3 + 1
    assert all(isinstance(layer, PanelLinear) and not layer.weights for layer in layers)
    logits_of(runner, list(range(3, 40)), [20, 1, 16])


def test_float32_stays_with_onednn() -> None:
    runner = PackedRunner(tiny_model("llama", **WIDE), wish(), compiled=True)
    assert all(isinstance(layer, PackedLinear) for layer in compiled(runner).linears)


@compiled_here
def test_a_run_counts_nanoseconds_where_it_is_asked_to() -> None:
    runner = PackedRunner(wide_model("llama"), wish(), compiled=True)
    [program] = compiled(runner).programs
    program.profile = forward.array("q", [0] * 9)
    logits_of(runner, list(range(3, 40)), [36, 1])
    assert program.profile[forward.LINEAR] > 0
    assert program.profile[forward.ATTENTION] > 0
    assert program.profile[forward.ADD] == 0


def test_an_operation_that_writes_ends_a_run() -> None:
    assert forward.writes(torch.fx.Graph().call_function(fusion.aten.add_.Tensor, ()))
    assert not forward.writes(torch.fx.Graph().call_function(fusion.aten.add.Tensor, ()))

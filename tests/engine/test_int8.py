"""Linear layers in 8 bits: as near as rounding allows, the same in any company, or refused."""

from __future__ import annotations

import copy
import math
import operator
import statistics
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from basaran_ops.engine import forward, int8
from basaran_ops.engine.int8 import GROUP, Int8Linear, check_int8, takes
from basaran_ops.engine.loader import load_engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.runners import choose_runner
from basaran_ops.engine.weights import Checkpoint
from basaran_ops.errors import ModelLoadError
from basaran_ops.outputs import TokenLogprob
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import tiny_model
from .engines import drain, engine_for, wish
from .test_forward import wide_model
from .test_graph import compiled, logits_of

eight_bits_here = pytest.mark.skipif(
    not int8.available, reason="this processor has no 8-bit products beside bfloat16's, or has AMX"
)

EIGHT = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What 8 bits leave of the last dimension, by groups, in float64."""
    groups = x.double().unflatten(-1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scales.clamp(min=1e-30)).round() * scales).flatten(-2)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal ones, of which a column is far larger than the others, as models have it."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., 5] *= 30
    return x.to(torch.bfloat16)


# -- a layer ---------------------------------------------------------------------------------------------


@eight_bits_here
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 50])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 64), (70, 128), (5, 192), (4100, 64)])
def test_a_product_is_that_of_the_rounded_numbers(rows: int, outputs: int, inputs: int) -> None:
    x, weight = numbers(rows, inputs), numbers(outputs, inputs, seed=1)
    exact = rounded(x) @ rounded(weight).T
    got = Int8Linear([weight], [])(x).double()
    # float32 sums, and a result in bfloat16; few inputs lie so near the middle that they round otherwise.
    assert (got - exact).norm() / exact.norm() < 2**-8


@eight_bits_here
def test_layers_that_read_the_same_are_one_product_with_their_biases() -> None:
    x, first, second = numbers(3, 64), numbers(40, 64, seed=1), numbers(30, 64, seed=2)
    biases = [numbers(40, seed=3), numbers(30, seed=4)]
    layer = Int8Linear([first, second], biases)
    one, two = layer.split(layer(x))
    for part, weight, bias in ((one, first, biases[0]), (two, second, biases[1])):
        exact = rounded(x) @ rounded(weight).T + bias.double()
        assert (part.double() - exact).norm() / exact.norm() < 2**-8


@eight_bits_here
def test_rounding_costs_less_than_a_hundredth() -> None:
    x, weight = numbers(64, 576), numbers(200, 576, seed=1)
    exact = functional.linear(x.double(), weight.double())
    assert (Int8Linear([weight], [])(x).double() - exact).norm() / exact.norm() < 0.01


@eight_bits_here
def test_a_row_is_the_same_in_any_company() -> None:
    x, layer = numbers(29, 128), Int8Linear([numbers(100, 128, seed=1)], [])
    together = layer(x)
    for count in (1, 3, 6, 7, 20):
        assert torch.equal(layer(x[:count]), together[:count])


@eight_bits_here
def test_nothing_gives_nothing_and_no_number_gives_none() -> None:
    x, layer = torch.zeros(3, 128, dtype=torch.bfloat16), Int8Linear([numbers(40, 128, seed=1)], [])
    x[1, 70] = math.nan
    x[2, 70] = math.inf
    out = layer(x)
    assert (out[0] == 0).all()
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()


@eight_bits_here
def test_it_is_little_more_than_half_as_large() -> None:
    weight = numbers(320, 128)
    assert Int8Linear([weight], []).packed.nbytes == pytest.approx(weight.nbytes / 2 * (1 + 4 / GROUP))


def calm(model: PreTrainedModel) -> PreTrainedModel:
    """With smaller weights, as trained models have: what is rounded in one layer stays small in the next."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 0.2
    return model


# -- a model ---------------------------------------------------------------------------------------------


@eight_bits_here
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_a_models_logits_are_near_its_own(name: str) -> None:
    model = calm(wide_model(name, **EIGHT))
    prompt = [(i * i * 7 + 3 * i) % 300 + 5 for i in range(37)]
    plain = PackedRunner(copy.deepcopy(model), wish(), compiled=True)
    runner = PackedRunner(model, wish(), compiled=True, int8=True)
    layers = compiled(runner).linears
    assert sum(isinstance(layer, Int8Linear) for layer in layers) == len(layers)
    expected, got = (logits_of(each, prompt, [20, 16, 1]) for each in (plain, runner))
    assert (got - expected).norm() / expected.norm() < 0.05


@eight_bits_here
def test_a_sequence_gets_the_same_tokens_in_any_company() -> None:
    model = wide_model("llama", **EIGHT)
    prompts = [tuple((n * 31 + i * i) % 300 + 5 for i in range(8 + 5 * n)) for n in range(5)]

    def tokens(batches: list[list[int]]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for batch in batches:
            engine = engine_for(copy.deepcopy(model), engine_int8=True)
            for number in batch:
                engine.add(number, prompts[number], SamplingParams(max_tokens=12), seed=0)
            found |= drain(engine)
        return found

    assert tokens([[0, 1, 2, 3, 4]]) == tokens([[0], [1], [2], [3], [4]])


@eight_bits_here
def test_the_default_model_finds_a_text_as_likely_and_says_nearly_the_same(default_model_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()[:2500]
    ids = tuple(Tokenizer.load(str(default_model_path)).encode(text))

    def told(*, int8: bool) -> tuple[float, list[int]]:
        settings = Settings(engine_int8=int8, engine_slots=1, engine_context_length=1024)
        engine, _ = load_engine(Checkpoint(default_model_path, default_model_path), settings)
        engine.add(0, ids, SamplingParams(max_tokens=0, logprobs=1, prompt_logprobs=True), seed=0)
        entries: list[TokenLogprob] = []
        while engine.has_work:
            entries += [entry for output in engine.step() for entry in output.prompt_logprobs]
        return (
            -statistics.fmean(entry.logprob for entry in entries),
            [entry.top[0][0] for entry in entries],
        )

    (loss, likeliest), (loss_8, likeliest_8) = told(int8=False), told(int8=True)
    alike = statistics.fmean(map(operator.eq, likeliest, likeliest_8))
    print(
        f"{len(ids)} tokens: loss {loss:.4f}, in 8 bits {loss_8:.4f}; the likeliest token alike: {alike:.1%}"
    )
    assert loss_8 == pytest.approx(loss, abs=0.02)
    assert alike > 0.9


# -- what is refused -------------------------------------------------------------------------------------


def test_it_takes_whole_groups_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "available", True)
    monkeypatch.setattr(forward, "available", True)
    assert takes(torch.empty(3, 128, dtype=torch.bfloat16))
    assert not takes(torch.empty(3, 96, dtype=torch.bfloat16))
    assert not takes(torch.empty(3, 128))


@pytest.mark.parametrize(
    ("available", "dtype", "compiled", "hidden", "reason"),
    [
        (False, torch.bfloat16, True, 128, "the processor lacks"),
        (True, torch.float32, True, 128, r"not torch.float32 on cpu"),
        (True, torch.bfloat16, False, 128, "operations change"),
        (True, torch.bfloat16, True, 96, "no linear layer of LlamaForCausalLM has a multiple of 64 inputs"),
    ],
)
def test_what_cannot_have_8_bits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    available: bool,
    dtype: torch.dtype,
    compiled: bool,
    hidden: int,
    reason: str,
) -> None:
    monkeypatch.setattr(int8, "available", available)
    monkeypatch.setattr(forward, "available", True)
    sizes = {"hidden_size": hidden, "intermediate_size": hidden, "head_dim": 24, "num_attention_heads": 4}
    model = tiny_model("llama", **sizes).to(dtype)
    with pytest.raises(ModelLoadError, match=f"ENGINE_INT8: .*{reason}"):
        check_int8(model, compiled=compiled)


@eight_bits_here
def test_an_encoder_decoder_is_refused_and_not_run_otherwise() -> None:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 50}
    model = T5ForConditionalGeneration(T5Config(**sizes)).to(torch.bfloat16).eval()
    settings = Settings(engine_int8=True, engine_slots=2, engine_context_length=64)
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        choose_runner(model, settings, 0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_load_in_8bit", True),
        ("engine_compile", False),
        ("engine_runner", "padded"),
        ("model_adapters", "a=/nowhere"),
    ],
)
def test_settings_that_exclude_it_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"ENGINE_INT8 .*{name.upper()}"):
        Settings.model_validate({"engine_int8": True, name: value})

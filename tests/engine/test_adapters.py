from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from basaran_ops.engine.adapters import Adapters
from basaran_ops.engine.engine import Engine
from basaran_ops.errors import ModelLoadError
from basaran_ops.outputs import SequenceOutput
from basaran_ops.sampling_params import SamplingParams

from ..architectures import tiny_architecture
from ..tiny_adapters import adapted, save_adapter
from ..tiny_models import tiny_model
from .engines import drain, engine_for

NAMES = ("org/first", "v1.5")
"""With what no module's name can hold."""

Request = tuple[tuple[int, ...], str | None]


def save_adapters(directory: Path, model: PreTrainedModel) -> dict[str, Path]:
    return {name: save_adapter(directory / str(seed), model, seed) for seed, name in enumerate(NAMES)}


def alone(model: PreTrainedModel, paths: Mapping[str, Path]) -> dict[str | None, PreTrainedModel]:
    """The model, and a model of its own for each adapter, as peft makes it."""
    return {None: copy.deepcopy(model)} | {name: adapted(model, path) for name, path in paths.items()}


def greedy(model: PreTrainedModel, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0]
    tokens: list[int] = output[1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
    return tokens


def arrive_at_random(engine: Engine, requests: list[Request], **params: Any) -> list[list[SequenceOutput]]:
    """The outputs of each request. Steps and arrivals are mixed; the same each time."""
    dice = random.Random(7)
    outputs: list[list[SequenceOutput]] = [[] for _ in requests]
    waiting = list(enumerate(requests))
    while waiting or engine.has_work:
        for number, (prompt, adapter) in (
            waiting.pop(0) for _ in range(min(len(waiting), dice.choice((0, 0, 1, 3))))
        ):
            engine.add(number, prompt, SamplingParams(temperature=0, **params), None, adapter)
        if engine.has_work:
            for output in engine.step():
                outputs[output.sequence_id].append(output)
    engine.check_idle()
    return outputs


def random_requests(count: int, *, beginning: tuple[int, ...] = ()) -> list[Request]:
    dice = random.Random(3)
    return [
        (
            (*beginning, *(dice.randrange(2, 300) for _ in range(dice.randrange(1, 40)))),
            (None, *NAMES)[number % 3],
        )
        for number in range(count)
    ]


def tokens_of(outputs: list[list[SequenceOutput]]) -> list[list[int]]:
    return [[token for output in each for token in output.token_ids] for each in outputs]


@pytest.mark.parametrize(
    ("name", "runner"), [("llama", "packed"), ("gpt2", "packed"), ("bloom", "padded"), ("t5", "padded")]
)
def test_a_mixed_batch_gives_each_what_generate_gives_with_its_adapter_alone(
    name: str, runner: str, tmp_path: Path
) -> None:
    model = tiny_architecture(name)
    paths = save_adapters(tmp_path, model)
    models = alone(model, paths)
    requests = random_requests(21)
    expected = [greedy(models[adapter], prompt, 10) for prompt, adapter in requests]
    assert expected != [greedy(models[None], prompt, 10) for prompt, _ in requests]
    engine = engine_for(model, slots=6, adapters=paths)
    assert engine._runner.name == runner
    assert tokens_of(arrive_at_random(engine, requests, max_tokens=10)) == expected


def test_beginnings_are_shared_among_sequences_of_one_adapter_alone(tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = save_adapters(tmp_path, model)
    models = alone(model, paths)
    requests = random_requests(24, beginning=tuple(range(100, 140)))
    expected = [greedy(models[adapter], prompt, 8) for prompt, adapter in requests]
    engine = engine_for(model, slots=4, adapters=paths)
    outputs = arrive_at_random(engine, requests, max_tokens=8)
    assert tokens_of(outputs) == expected
    cached = [each[0].cached_tokens for each in outputs]
    assert cached[:3] == [0, 0, 0], "nothing of another's was taken"
    assert sum(count >= 40 for count in cached) > 6


def test_a_prompt_that_one_adapter_has_read_is_read_again_for_another(tmp_path: Path) -> None:
    model = tiny_model("llama")
    engine = engine_for(model, adapters=save_adapters(tmp_path, model))
    prompt = tuple(range(100, 140))
    cached = []
    for number, adapter in enumerate((None, *NAMES, None, *NAMES)):
        engine.add(number, prompt, SamplingParams(max_tokens=1, temperature=0), None, adapter)
        while engine.has_work:
            cached += [output.cached_tokens for output in engine.step()]
    assert cached == [0, 0, 0, 39, 39, 39]


def test_log_probabilities_are_those_of_the_model_with_the_adapter(tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = save_adapters(tmp_path, model)
    models = alone(model, paths)
    requests = random_requests(9)
    engine = engine_for(model, slots=4, adapters=paths)
    outputs = arrive_at_random(engine, requests, max_tokens=6, logprobs=0, prompt_logprobs=True)
    for (prompt, adapter), each in zip(requests, outputs, strict=True):
        told = [entry for output in each for entry in (*output.prompt_logprobs, *output.logprobs)]
        tokens = [*prompt, *(token for output in each for token in output.token_ids)]
        with torch.inference_mode():
            own = models[adapter](input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        assert [entry.token_id for entry in told] == tokens[1:]
        numbers = torch.tensor([entry.logprob for entry in told])
        assert torch.allclose(numbers, own[range(len(told)), tokens[1:]], atol=1e-4)


def test_the_model_itself_is_unchanged_to_the_last_bit(tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = save_adapters(tmp_path, model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        adapters = Adapters(model, paths)
        assert torch.equal(model(input_ids=ids).logits, before)
        adapters.activate(NAMES[0])
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=0.1)
        adapters.activate(None)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora" in name)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear", "use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
        {"layers_to_transform": [1]},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5, 6, 9]},
        {"target_modules": ["embed_tokens", "gate_proj"]},
    ],
    ids="-".join,
)
def test_whatever_lora_can_do_takes_turns_with_others(fields: dict[str, Any], tmp_path: Path) -> None:
    """Beside an adapter that changes other layers, and the model itself."""
    model = tiny_model("llama")
    paths = {
        "plain": save_adapter(tmp_path / "plain", model, 1),
        "other": save_adapter(tmp_path / "other", model, 2, **fields),
    }
    models = alone(model, paths)
    requests: list[Request] = [
        ((5, 6, 7, 8, 9), adapter) for adapter in ("other", None, "plain", "other", "plain")
    ]
    expected = [greedy(models[adapter], prompt, 8) for prompt, adapter in requests]
    assert expected[0] not in (expected[1], expected[2])
    engine = engine_for(model, adapters=paths)
    for number, (prompt, adapter) in enumerate(requests):
        engine.add(number, prompt, SamplingParams(max_tokens=8, temperature=0), None, adapter)
    tokens = drain(engine)
    assert [tokens[number] for number in range(len(requests))] == expected


def test_weights_in_half_precision_stay_so(tmp_path: Path) -> None:
    paths = save_adapters(tmp_path, tiny_model("llama"))
    model = tiny_model("llama").to(torch.bfloat16)
    engine = engine_for(model, adapters=paths)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for number, adapter in enumerate((None, *NAMES)):
        engine.add(number, (5, 6, 7), SamplingParams(max_tokens=5, temperature=0), None, adapter)
    assert len({tuple(tokens) for tokens in drain(engine).values()}) == 3


def test_pickled_weights_are_read_too(tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = save_adapters(tmp_path, model)
    expected = greedy(adapted(model, paths["v1.5"]), (5, 6, 7), 8)
    file = paths["v1.5"] / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    engine = engine_for(model, adapters=paths)
    engine.add(0, (5, 6, 7), SamplingParams(max_tokens=8, temperature=0), None, "v1.5")
    assert drain(engine)[0] == expected


def test_an_unknown_adapter_is_refused(tmp_path: Path) -> None:
    engine = engine_for(tiny_model("llama"))
    with pytest.raises(ValueError, match="the model has no adapter 'none'"):
        engine.add(0, (5, 6), SamplingParams(), None, "none")


def change_config(path: Path, **fields: object) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_weights(path: Path, **tensors: torch.Tensor | None) -> None:
    """The first tensor's place is taken by these; None takes it away."""
    file = path / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    del weights[first]
    save_file(
        weights | {first if name == "same" else name: t for name, t in tensors.items() if t is not None}, file
    )


def cut_short(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: (path / "adapter_config.json").write_text("{"), "JSONDecodeError"),
        (lambda path: change_config(path, peft_type="NEW"), "'NEW'"),
        (lambda path: change_config(path, target_modules=["query_key_value"]), "query_key_value"),
        (lambda path: change_config(path, bias="all"), "bias='all' are not served"),
        (
            lambda path: change_config(path, init_lora_weights="pissa"),
            "init_lora_weights='pissa' are not served",
        ),
        (
            lambda path: change_config(path, layer_replication=[[0, 2], [1, 3]]),
            "layer_replication=.* are not served",
        ),
        (
            lambda path: change_config(path, alora_invocation_tokens=[5]),
            "alora_invocation_tokens=.* are not served",
        ),
        (
            lambda path: change_config(path, peft_type="IA3"),
            "of the kind IA3, and only LoRA adapters are served",
        ),
        (cut_short, "SafetensorError"),
        (lambda path: change_weights(path, same=None), r"its weights lack .*lora_A.* \(1 are missing\)"),
        (
            lambda path: change_weights(path, same=torch.zeros(4, 3)),
            r"size mismatch for .*\[4, 3\].*\[4, 128\]",
        ),
        (
            lambda path: change_weights(path, same=torch.full((4, 128), torch.nan)),
            "weights are not all finite",
        ),
        (
            lambda path: change_config(path, target_modules=["q_proj", "v_proj"]),
            r"the model has no place for .*down_proj.* \(6 are too many\)",
        ),
    ],
    ids=str,
)
def test_a_broken_adapter_is_told_in_one_line_that_names_it(damage: Any, told: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = save_adapters(tmp_path, model)
    damage(paths["v1.5"])
    with pytest.raises(ModelLoadError, match=told) as raised:
        Adapters(model, paths)
    assert raised.value.permanent
    assert raised.value.message.startswith(f"MODEL_ADAPTERS: v1.5={paths['v1.5']}: ")
    assert "\n" not in raised.value.message


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    paths = save_adapters(tmp_path, tiny_model("llama", hidden_size=32))
    with pytest.raises(ModelLoadError, match=r"MODEL_ADAPTERS: org/first=.*size mismatch"):
        Adapters(tiny_model("llama"), paths)


def test_a_model_that_comes_with_an_adapter_of_its_own_takes_no_others(tmp_path: Path) -> None:
    model = tiny_model("llama")
    paths = save_adapters(tmp_path, model)
    Adapters(model, paths)
    with pytest.raises(ModelLoadError, match="comes with an adapter of its own"):
        Adapters(model, paths)

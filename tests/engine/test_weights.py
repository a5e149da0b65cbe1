from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModelForCausalLM, PreTrainedConfig

from basaran_ops.engine import weights
from basaran_ops.engine.weights import Checkpoint, load_model
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

from ..architectures import ARCHITECTURES, tiny_architecture
from ..tiny_models import save_tiny

CPU = torch.device("cpu")


def load(path: Path, device: torch.device = CPU, **values: object) -> transformers.PreTrainedModel:
    chosen = Settings(**{"model_dtype": "float32"} | values)  # type: ignore[arg-type]
    return load_model(Checkpoint(path, path), chosen, device)


def save_config(path: Path, name: str, **values: object) -> Path:
    config: PreTrainedConfig = getattr(transformers, f"{name}Config")(**values)
    config.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_loaded_as_what_it_is(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is ARCHITECTURES[name].model_class
    assert not loaded.training
    expected, got = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(got[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "architectures", "named"),
    [
        ("CLIP", ["CLIPModel"], "CLIPModel"),
        ("ViT", ["ViTForImageClassification"], "ViTForImageClassification"),
        ("Whisper", ["WhisperForConditionalGeneration"], "WhisperForConditionalGeneration"),
        ("Bert", ["BertForMaskedLM"], "BertForMaskedLM"),
        ("Roberta", ["RobertaForSequenceClassification"], "RobertaForSequenceClassification"),
        ("Llama", ["LlamaForSequenceClassification"], "LlamaForSequenceClassification"),
        ("T5", ["T5EncoderModel"], "T5EncoderModel"),
        ("DistilBert", None, "distilbert"),
    ],
)
def test_what_writes_no_text_is_refused_by_name(
    name: str, architectures: list[str] | None, named: str, tmp_path: Path
) -> None:
    save_config(tmp_path, name, architectures=architectures)
    with pytest.raises(ModelLoadError) as raised:
        load(tmp_path)
    assert raised.value.permanent
    assert raised.value.message == f"{tmp_path / 'config.json'}: {named} is not a text-generation model"


def test_an_encoder_without_a_head_is_not_given_a_random_one(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"the weights lack cls\.predictions.* of BertLMHeadModel"):
        load(tmp_path)


def test_a_checkpoint_without_a_head_is_loaded_where_the_embedding_is_the_head(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=320, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    assert type(load(tmp_path)).__name__ == "GPT2LMHeadModel"


@pytest.mark.parametrize("bits", ["model_load_in_8bit", "model_load_in_4bit"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@torch.inference_mode()
def test_an_encoder_decoder_in_8_or_4_bits_computes_what_its_rounded_weights_say(
    bits: str, tmp_path: Path
) -> None:
    model = tiny_architecture("t5")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, model_dtype="auto", **{bits: True})
    assert loaded.is_quantized
    rounded = 0
    for name, module in loaded.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            model.get_submodule(name).weight.copy_(dense(module))
            rounded += 1
    assert rounded > 10
    ids, start = torch.tensor([[5, 9, 17, 33, 2]]), torch.tensor([[0, 7, 11]])
    expected = model(input_ids=ids, decoder_input_ids=start).logits
    got = loaded(input_ids=ids, decoder_input_ids=start).logits.float()
    # 8-bit products round the activations, too.
    assert (got - expected).norm() / expected.norm() < 0.2


def dense(module: Linear4bit | Linear8bitLt) -> torch.Tensor:
    """The weights that a quantized layer stands for."""
    if isinstance(module, Linear4bit):
        weight: torch.Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
        return weight
    return module.weight.CB * module.weight.SCB[:, None] / 127


@pytest.mark.parametrize("name", ["MODEL_LOAD_IN_8BIT", "MODEL_LOAD_IN_4BIT"])
def test_quantized_weights_are_refused_by_name_where_they_are_not_tried(name: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model")
    with pytest.raises(ModelLoadError) as raised:
        load(path, torch.device("mps"), **{name.lower(): True})
    assert raised.value.message == (
        f"{name} is for cuda and cpu: bitsandbytes is not used on mps; unset it, or set ENGINE_DEVICE=cpu"
    )


class Asked(Exception):
    """What from_pretrained was asked for."""


def asked(monkeypatch: pytest.MonkeyPatch, path: Path, device: str, **values: object) -> dict[str, object]:
    """The arguments of from_pretrained, on a machine with four GPUs of 1000 bytes each."""
    arguments: dict[str, object] = {}

    def record(path: Path, **kwargs: object) -> None:
        arguments.update(kwargs)
        raise Asked

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(weights, "available_bytes", lambda device: 1000 - device.index)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", record)
    with pytest.raises(ModelLoadError, match="Asked"):
        load(path, torch.device(device), **values)
    return arguments


def test_over_several_gpus_layers_are_spread_within_what_each_has(
    monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    arguments = asked(monkeypatch, tiny_path, "cuda", gpus_per_replica=2)
    assert (arguments["device_map"], arguments["max_memory"]) == ("auto", {0: 1000, 1: 999})


@pytest.mark.parametrize("device", ["cuda", "cuda:2", "cpu", "mps"])
def test_on_one_device_the_model_is_moved_there_whole(
    device: str, monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    assert "device_map" not in asked(monkeypatch, tiny_path, device)


@pytest.mark.parametrize(("device", "expected"), [("cuda", "cuda:0"), ("cuda:2", "cuda:2"), ("cpu", "cpu")])
def test_quantized_weights_go_where_the_engine_is(
    device: str, expected: str, monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    assert asked(monkeypatch, tiny_path, device, model_load_in_4bit=True)["device_map"] == {"": expected}


@pytest.mark.parametrize(("allowed", "expected"), [(False, True), (True, None)])
def test_pickles_are_looked_for_only_where_allowed(
    allowed: bool, expected: bool | None, monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    arguments = asked(monkeypatch, tiny_path, "cpu", model_allow_pickle=allowed)
    assert arguments["use_safetensors"] is expected
    assert "weights_only" not in arguments, "torch's restricted unpickler is transformers' default"

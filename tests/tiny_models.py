"""Random models, small enough to make in milliseconds, and a byte-level tokenizer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 320
EOS, BOS = 0, 1

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": None,
    "pad_token_id": None,
}

_GPT_NEOX: dict[str, Any] = {
    key: value for key, value in _LLAMA_LIKE.items() if key not in ("num_key_value_heads", "head_dim")
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _LLAMA_LIKE),
    "qwen3": ("Qwen3", _LLAMA_LIKE),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_positions": 512,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "bos_token_id": BOS,
            "eos_token_id": None,
        },
    ),
    "gpt_neox": ("GPTNeoX", _GPT_NEOX),
    "mistral": ("Mistral", _LLAMA_LIKE | {"sliding_window": 9}),
    "gemma": ("Gemma", _LLAMA_LIKE),
    # Beyond plain attention: soft-capping and alternating windows, attention sinks with experts.
    "gemma2": ("Gemma2", _LLAMA_LIKE | {"sliding_window": 9}),
    "gpt_oss": (
        "GptOss",
        _LLAMA_LIKE
        | {
            "sliding_window": 9,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}

CLASSES = {"GPT2": "GPT2LMHeadModel"}


def tiny_model(name: str, *, eos: int | None = None, **changes: object) -> PreTrainedModel:
    """A float32 model whose weights are wide enough that its tokens vary."""
    prefix, values = CONFIGS[name]
    config = getattr(transformers, f"{prefix}Config")(**values | changes)
    config.eos_token_id = eos
    torch.manual_seed(0)
    model = getattr(transformers, CLASSES.get(prefix, f"{prefix}ForCausalLM"))(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = eos
    return model


def tiny_tokenizer(special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """256 bytes, two special tokens, those given, and a few merges: any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>", "<|begin|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the cat sat on the mat and the hat; the rat that ate the oats in the house was stout"] * 9
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        bos_token="<|begin|>",
        clean_up_tokenization_spaces=False,
    )


def save_tiny(
    directory: Path,
    name: str = "llama",
    *,
    eos: int | None = EOS,
    special: tuple[str, ...] = (),
    **changes: object,
) -> Path:
    """A directory that MODEL can name."""
    tiny_model(name, eos=eos, **changes).save_pretrained(directory)
    tiny_tokenizer(special).save_pretrained(directory)
    return directory


def generate(model: PreTrainedModel, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """Greedy tokens of one prompt alone, by transformers."""
    # Explicit: transformers takes the pad token in a prompt for padding.
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens

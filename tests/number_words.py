"""Small encoder-decoder models that learn, in seconds, to write numbers as words."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from .tiny_models import BOS, EOS, VOCAB, tiny_tokenizer

PAD, START = 2, 3
STEPS = 150

ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words(number: int) -> str:
    if number < len(ONES):
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def tokenizer() -> PreTrainedTokenizerFast:
    """Ends every text with EOS, as T5's and BART's do."""
    made = tiny_tokenizer(("<|pad|>", "<|start|>"))
    made.pad_token = "<|pad|>"
    made.add_eos_token = True
    made.update_post_processor()
    return made


def untrained(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    ids = {"eos_token_id": EOS, "pad_token_id": PAD, "decoder_start_token_id": START, "bos_token_id": BOS}
    if kind == "t5":
        config = T5Config(
            vocab_size=VOCAB,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            **ids,
        )
        return T5ForConditionalGeneration(config)
    sizes = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
    }
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCAB,
            d_model=64,
            dropout=0.0,
            max_position_embeddings=128,
            forced_eos_token_id=None,
            **sizes,
            **ids,
        )
    )


def save_trained(directory: Path, kind: str) -> Path:
    """Train one on all numbers below 100 and save it where MODEL can name it."""
    model, text = untrained(kind), tokenizer()
    asked = text([str(number) for number in range(100)], padding=True, return_tensors="pt")
    answers = text([words(number) for number in range(100)], padding=True, return_tensors="pt")
    labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(directory)
    text.save_pretrained(directory)
    return directory

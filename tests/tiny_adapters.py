"""LoRA adapters of random numbers, wide enough that a model's tokens change with them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bloom": ["query_key_value", "dense_4h_to_h"],
    "t5": ["q", "v", "wo"],
}
"""Layers that adapters of each kind of model change; v decides what is kept of a token."""


def save_adapter(
    directory: Path, model: PreTrainedModel, seed: int, *, std: float = 0.15, **fields: Any
) -> Path:
    """A directory that MODEL_ADAPTERS can name. The model stays as it is."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS[kind(model)]} | fields)
    with warnings.catch_warnings():
        # Of tied weights, and of other things that matter in training.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(copy.deepcopy(model), config)
        torch.manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
            elif parameter.requires_grad:
                torch.nn.init.normal_(parameter, mean=1.0, std=std)
        adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory


def adapted(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A copy of the model with this adapter alone, as peft makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = PeftModel.from_pretrained(copy.deepcopy(model), path)
    base: PreTrainedModel = whole.eval().base_model.model
    return base


def kind(model: PreTrainedModel) -> str:
    name: str = model.config.model_type
    return name

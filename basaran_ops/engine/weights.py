"""From a checkpoint on disk to a transformers model on its device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedConfig, PreTrainedModel

from ..errors import ModelLoadError
from ..settings import Settings
from .devices import choose_dtype


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on local disk."""

    path: Path
    """Directory with config and weights."""
    tokenizer_path: Path
    """Directory with the tokenizer; the same unless the weights are a GGUF file."""
    gguf_file: str | None = None
    """Name of the weights' file in `path`, where they are GGUF."""


def load_model(checkpoint: Checkpoint, settings: Settings, device: torch.device) -> PreTrainedModel:
    """The transformers model, in eval mode, on its device."""
    config = _read_config(checkpoint, settings)
    if config.is_encoder_decoder:
        raise ModelLoadError(f"{config.model_type} is an encoder-decoder model, which cannot be served yet")
    dtype = choose_dtype(settings, device, getattr(config, "dtype", None))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            gguf_file=checkpoint.gguf_file,
            dtype=dtype,
            quantization_config=_quantization(checkpoint, settings),
            trust_remote_code=settings.model_trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelLoadError(f"{checkpoint.path}: {_first_line(error)}") from error
    loaded: PreTrainedModel = model.eval()
    if getattr(loaded, "is_quantized", False):
        return loaded
    return loaded.to(device)


def _read_config(checkpoint: Checkpoint, settings: Settings) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.path,
            gguf_file=checkpoint.gguf_file,
            trust_remote_code=settings.model_trust_remote_code,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{checkpoint.path}: {_first_line(error)}") from error
    assert isinstance(config, PreTrainedConfig)
    return config


def _quantization(checkpoint: Checkpoint, settings: Settings) -> Any:
    if checkpoint.gguf_file is not None:
        # Packed GGUF blocks are unpacked at every product: dense weights are faster and exact.
        return GgufConfig(dequantize=True)
    if not (settings.model_load_in_8bit or settings.model_load_in_4bit):
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=settings.model_load_in_8bit, load_in_4bit=settings.model_load_in_4bit
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

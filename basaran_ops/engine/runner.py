"""The interface between the engine and a way to run models."""

from __future__ import annotations

from typing import Protocol

import torch

from .sequence import Batch


class ModelRunner(Protocol):
    """Runs one step's batch through a model and keeps the state that later steps need."""

    name: str
    context_length: int
    """Tokens of prompt and completion, or of the prompt alone where there is a completion_length."""
    completion_length: int | None
    """Tokens of a completion, where it does not share the prompt's context."""

    output_size: int
    """Columns of the logits: tokens that can be generated."""
    scores_prompts: bool
    """Whether the logits at a prompt's tokens are what the model thinks will follow each."""

    may_overflow: bool
    """Whether numbers may leave the range of the model's type."""

    def forget(self, slot: int) -> None:
        """Clear what a slot keeps, which is not to be read again."""
        ...

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, vocab], float32: each chunk's last `logit_rows` tokens, chunk by chunk."""
        ...

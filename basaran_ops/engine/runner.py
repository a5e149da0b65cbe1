"""The interface between the engine and a way to run models."""

from __future__ import annotations

from typing import Protocol

import torch

from .sequence import Batch


class ModelRunner(Protocol):
    """Runs one step's batch through a model and keeps the state that later steps need, by slot."""

    name: str
    context_length: int
    """Tokens a slot holds."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, vocab], float32: each chunk's last `logit_rows` tokens, chunk by chunk."""
        ...

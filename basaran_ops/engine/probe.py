"""Whether a way to run a model gives the model's own logits, seen on a short prompt when it is loaded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..errors import ModelLoadError

PROBE_TOKENS = 12


class RunnerUnfit(ModelLoadError):
    """This runner cannot run this model; another one may."""


def probe_ids(model: PreTrainedModel, count: int = PROBE_TOKENS, *, offset: int = 1) -> list[int]:
    """Token ids spread over the vocabulary; other ones for another offset."""
    vocab = model.get_input_embeddings().weight.shape[0]
    step = max(1, vocab // (PROBE_TOKENS + 1))
    return [(offset + number) * step % vocab for number in range(count)]


def relative_error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Euclidean distance, as a share of the reference's length; infinite if one is not finite."""
    error = ((logits.float() - reference.float()).norm() / reference.float().norm()).item()
    return error if error == error else float("inf")  # noqa: PLR0124 - not a number


def overflows(model: PreTrainedModel) -> bool:
    """Whether its numbers may leave the range of their type: float16 ends at 65,504."""
    return model.dtype == torch.float16 or bool(getattr(model, "is_quantized", False))


def tolerance(model: PreTrainedModel, *, same_kernels: bool = False) -> float:
    """The relative error that rounding explains; less of it where the same kernels run."""
    if getattr(model, "is_quantized", False):
        # 8-bit products also quantize activations, by what else is in the batch.
        return 0.3
    # Rounding gave up to 0.04 in bfloat16 over the architectures tried, 0.002 in float16.
    if model.dtype == torch.float32:
        return 1e-3
    if same_kernels:
        return 0.01 if model.dtype == torch.float16 else 0.05
    return 0.15

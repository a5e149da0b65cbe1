"""basaran_ops: any Hugging Face text-generation model behind an OpenAI-compatible API, for production.

>>> from basaran_ops import load_model
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BasaranError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .model import load_model as load_model
    from .stream_model import StreamModel as StreamModel

__version__ = "0.1.0"

__all__ = ["BasaranError", "SamplingParams", "StreamModel", "load_model"]


def __getattr__(name: str) -> Any:
    # Late: the server's process imports this package and must never import torch.
    if name == "load_model":
        from .model import load_model

        return load_model
    if name == "StreamModel":
        from .stream_model import StreamModel

        return StreamModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

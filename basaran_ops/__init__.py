"""basaran_ops: any Hugging Face text-generation model behind an OpenAI-compatible API, for production.

>>> from basaran_ops import load_model
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import BasaranError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .choices import ChoiceDict as ChoiceDict
    from .choices import ChoiceStream as ChoiceStream
    from .choices import reduce_choice as reduce_choice
    from .model import LibraryModel as LibraryModel
    from .model import load_model as load_model

__version__ = "0.1.0"

_LIBRARY = {
    "ChoiceDict": "choices",
    "ChoiceStream": "choices",
    "LibraryModel": "model",
    "load_model": "model",
    "reduce_choice": "choices",
}

__all__ = [
    "BasaranError",
    "ChoiceDict",
    "ChoiceStream",
    "LibraryModel",
    "SamplingParams",
    "load_model",
    "reduce_choice",
]


def __getattr__(name: str) -> Any:
    # Late: the server's process imports this package and must never import torch.
    if name in _LIBRARY:
        return getattr(import_module(f".{_LIBRARY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

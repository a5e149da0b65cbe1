"""LoRA adapters by peft: several models in one, of which a step runs one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..errors import ModelLoadError
from .library_logs import only_errors_logged

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger(__name__)

SERVED: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    "layer_replication": (None,),
    "kasa_config": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
}
"""Fields of an adapter's configuration, and the values with which it leaves the model itself as it is. Others
would change it under the other adapters (its biases, its weights, its layers), or want to know a prompt.
"""


class Adapters:
    """A model's adapters; at any time one of them is active, or none. Making it makes none active.

    They are injected into the model, whose class, attributes and attention stay what they are.
    """

    def __init__(self, model: PreTrainedModel, paths: Mapping[str, Path]) -> None:
        """`paths` are directories by name. Raises ModelLoadError, naming the adapter at fault."""
        # peft's names become names of modules, in which there can be no dot.
        self._keys = {name: f"adapter_{number}" for number, name in enumerate(paths)}
        if paths and getattr(model, "peft_config", None):
            raise ModelLoadError(
                "MODEL_ADAPTERS: the model comes with an adapter of its own, and can have no others beside it"
            )
        for name, path in paths.items():
            _load(model, name, path, self._keys[name])
        self._layers = _adapted_layers(model) if paths else []
        self._active: str | None = None
        self._switch(None)

    def __repr__(self) -> str:
        return f"<Adapters {list(self._keys)} active={self._active}>"

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def activate(self, name: str | None) -> None:
        """Make the model the one with this adapter; None for the model itself."""
        if name != self._active:
            self._switch(name)

    def _switch(self, name: str | None) -> None:
        key = None if name is None else self._keys[name]
        for state, keys in self._layers:
            # As set_adapter() and enable_adapters() do. For the sake of training these also go through all
            # weights, which took 25 ms for 224 layers; this takes 0.1 ms.
            state["_active_adapter"] = [key]
            state["_disable_adapters"] = key not in keys
        self._active = name


def _adapted_layers(model: PreTrainedModel) -> list[tuple[dict[str, Any], frozenset[str]]]:
    """The attributes of each layer that adapters have changed, and the keys of those adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [
        (vars(layer), frozenset(layer._get_available_adapters()))  # noqa: SLF001 - it has no public name
        for layer in model.modules()
        if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    ]


def _load(model: PreTrainedModel, name: str, path: Path, key: str) -> None:
    try:
        # Advice to programmers, in many lines. And bitsandbytes, which peft imports, asks for more kernels.
        with warnings.catch_warnings(record=True) as told, only_errors_logged("bitsandbytes"):
            warnings.simplefilter("always")
            fault = _inject(model, path, key)
        for warning in told:
            log.debug("adapter %s: %s", name, warning.message)
    except Exception as error:
        # What peft, safetensors and torch raise for what does not fit is of all kinds.
        log.debug("adapter %s cannot be loaded", name, exc_info=True)
        raise ModelLoadError(f"MODEL_ADAPTERS: {name}={path}: {_reason(error)}") from error
    if fault is not None:
        raise ModelLoadError(f"MODEL_ADAPTERS: {name}={path}: {fault}")


def _inject(model: PreTrainedModel, path: Path, key: str) -> str | None:
    """Put an adapter's layers into the model. What keeps it from being served, if anything does."""
    # Here, since it takes seconds, for those who have adapters.
    from peft import PeftConfig
    from peft.functional import inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(str(path))
    fault = _refusal(config)
    if fault is not None:
        return fault
    config.inference_mode = True
    weights = load_peft_weights(str(path), device="cpu")
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        return "its weights are not all finite"
    inject_adapter_in_model(config, model, key)
    # Whole modules and tokens that come with it peft would only find in a model that is wrapped.
    weights = {
        name if ".lora_" in name else name.removeprefix("base_model.model."): tensor
        for name, tensor in weights.items()
    }
    found = set_peft_model_state_dict(model, weights, adapter_name=key)
    # What is not the adapter's own is missing for a good reason.
    missing = [tensor for tensor in found.missing_keys if key in tensor.split(".")]
    if missing:
        return f"its weights lack {missing[0]} ({len(missing)} are missing)"
    excess = found.unexpected_keys
    if excess:
        return f"the model has no place for {excess[0]} ({len(excess)} are too many)"
    model.eval()
    return None


def _refusal(config: PeftConfig) -> str | None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        return f"it is of the kind {kind}, and only LoRA adapters are served"
    for field, values in SERVED.items():
        value = getattr(config, field, values[0])
        if value not in values:
            return (
                f"adapters with {field}={value!r} are not served: more than the adapter's own weights change"
            )
    return None


def _reason(error: Exception) -> str:
    """What an error says, in one line: where torch names tensors, the first of them."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"

"""From the MODEL_ADAPTERS setting to directories on local disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import ModelLoadError
from ..settings import Settings
from .hub import download
from .progress import Progress

CONFIG, SAFETENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


def resolve_adapters(settings: Settings, progress: Progress) -> Mapping[str, Path]:
    """The directory of each adapter by its name, fetched where it is the hub's.

    Raises ModelLoadError, naming the adapter: permanent for what is not there, not for a hub that cannot be
    reached.
    """
    return {name: _resolve(name, source, settings, progress) for name, source in settings.adapters.items()}


def _resolve(name: str, source: str, settings: Settings, progress: Progress) -> Path:
    path = Path(source).expanduser()
    told = f"MODEL_ADAPTERS: {name}={source}"
    if not path.is_dir():
        if path.is_absolute() or source.startswith((".", "~")):
            raise ModelLoadError(f"{told}: no such directory")
        path = _fetch(told, source, settings, progress)
    if not (path / CONFIG).is_file():
        raise ModelLoadError(f"{told}: there is no {CONFIG} in {path}")
    if (path / SAFETENSORS).is_file():
        return path
    if not (path / PICKLED).is_file():
        raise ModelLoadError(f"{told}: there is no {SAFETENSORS} in {path}")
    if not settings.model_allow_pickle:
        raise ModelLoadError(
            f"{told}: there are only pickled weights ({PICKLED}), which can run code when they are loaded; "
            "set MODEL_ALLOW_PICKLE=true if you trust their author"
        )
    return path


def _fetch(told: str, source: str, settings: Settings, progress: Progress) -> Path:
    # The model's revision is not the adapter's.
    asked = settings.model_copy(update={"model": source, "model_revision": ""})
    try:
        return download(asked, progress)
    except ModelLoadError as error:
        message = error.message.replace(f"MODEL={source}", told)
        raise ModelLoadError(message, permanent=error.permanent) from error

"""From the MODEL setting to files on local disk."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import platformdirs

from ..engine.weights import Checkpoint
from ..errors import ModelLoadError
from ..settings import Settings
from .adapters import resolve_adapters
from .default_model import default_model
from .directory import complete_directory
from .gguf_tokenizer import save_gguf_tokenizer
from .hub import download
from .integrity import check_directory
from .progress import Progress

log = logging.getLogger(__name__)


def resolve(settings: Settings, progress: Progress) -> Checkpoint:
    """Find, fetch or convert what MODEL and MODEL_ADAPTERS name.

    Raises ModelLoadError: permanent for what is missing or malformed, not for a hub that cannot be reached.
    """
    return replace(
        _resolve_model(settings, progress),
        adapters=resolve_adapters(settings, progress),
        cache=cache_directory(settings),
    )


def _resolve_model(settings: Settings, progress: Progress) -> Checkpoint:
    name = settings.model
    if settings.model_trust_remote_code:
        log.warning("MODEL_TRUST_REMOTE_CODE: code that comes with the model may do all that this server may")
    if not name:
        return _directory(
            default_model(cache_directory(settings), settings.model_local_files_only, progress), settings
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(path, settings)
    if path.is_file():
        return _gguf(path, cache_directory(settings), progress)
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith((".", "~")):
        raise ModelLoadError(f"MODEL={name}: no such file or directory")
    return _directory(download(settings, progress), settings)


def cache_directory(settings: Settings) -> Path:
    """Where conversions and recordings are kept."""
    if settings.model_cache_dir:
        return Path(settings.model_cache_dir).expanduser() / "basaran_ops"
    return platformdirs.user_cache_path("basaran_ops")


def _directory(path: Path, settings: Settings) -> Checkpoint:
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"MODEL={path}: there is no config.json in this directory")
    check_directory(path, settings)
    return Checkpoint(path=path, tokenizer_path=path)


def _gguf(path: Path, cache: Path, progress: Progress) -> Checkpoint:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelLoadError(f"MODEL={path} is not a GGUF file")
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    directory = cache / f"tokenizer-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def build(partial: Path) -> None:
        progress(f"converting the tokenizer of {path.name}")
        save_gguf_tokenizer(path, partial)

    complete_directory(directory, build)
    return Checkpoint(path=path.parent, tokenizer_path=directory, gguf_file=path.name)

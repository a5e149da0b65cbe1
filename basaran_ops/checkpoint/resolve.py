"""From the MODEL setting to files on local disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import platformdirs
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..engine.weights import Checkpoint
from ..errors import ModelLoadError
from ..settings import Settings
from .default_model import default_model
from .directory import complete_directory
from .gguf_tokenizer import save_gguf_tokenizer
from .progress import Progress

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
"""What a model and its tokenizer are made of. Pickled weights are code and are left out."""


def resolve(settings: Settings, progress: Progress) -> Checkpoint:
    """Find, fetch or convert what MODEL names.

    Raises ModelLoadError: permanent for what is missing or malformed, not for a hub that cannot be reached.
    """
    name = settings.model
    if not name:
        return _directory(default_model(cache_directory(settings), settings.model_local_files_only, progress))
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return _gguf(path, cache_directory(settings), progress)
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith((".", "~")):
        raise ModelLoadError(f"MODEL={name}: no such file or directory")
    return _directory(_download(settings, progress))


def cache_directory(settings: Settings) -> Path:
    """Where conversions are kept."""
    if settings.model_cache_dir:
        return Path(settings.model_cache_dir).expanduser() / "basaran_ops"
    return platformdirs.user_cache_path("basaran_ops")


def _directory(path: Path) -> Checkpoint:
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"MODEL={path}: there is no config.json in this directory")
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


def _download(settings: Settings, progress: Progress) -> Path:
    progress(f"fetching {settings.model} from the hub")
    try:
        path = Path(
            snapshot_download(
                settings.model,
                revision=settings.model_revision or None,
                cache_dir=settings.model_cache_dir or None,
                local_files_only=settings.model_local_files_only,
                allow_patterns=list(HUB_FILES),
            )
        )
    except LocalEntryNotFoundError as error:
        if settings.model_local_files_only:
            raise ModelLoadError(f"MODEL={settings.model} is not in the local cache") from error
        raise ModelLoadError(f"MODEL={settings.model}: the hub cannot be reached", permanent=False) from error
    except HFValidationError as error:
        raise ModelLoadError(f"MODEL={settings.model} is neither a file nor a hub id") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        message = str(error).strip().splitlines()[-1]
        raise ModelLoadError(
            f"MODEL={settings.model}: {message}", permanent=status in (401, 403, 404)
        ) from error
    except OSError as error:
        raise ModelLoadError(f"MODEL={settings.model}: {error}", permanent=False) from error
    if not any(path.glob("*.safetensors")):
        raise ModelLoadError(
            f"MODEL={settings.model} has no safetensors weights; pickled ones run code when they are loaded"
        )
    return path

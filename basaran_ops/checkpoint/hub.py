"""A model of the hub in the local cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx2
from huggingface_hub import constants, set_client_factory, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from ..engine.library_logs import only_errors_logged
from ..errors import ModelLoadError
from ..settings import Settings
from .integrity import has_safetensors
from .progress import Progress

FILES = (
    *("*.json", "*.safetensors", "*.jinja", "*.py"),
    *("*.model", "*.txt", "*.tiktoken", "*.spm", "*.codes", "*.tokenizer"),
)
"""What a model and its tokenizer are made of."""

UNUSED = ("consolidated*", "original/*", "onnx/*")
"""The same weights once more, in a form that transformers does not read."""

PICKLED = ("*.bin",)

REFUSALS = (
    (HFValidationError, "is neither a file nor a hub id"),
    (RevisionNotFoundError, "has no such MODEL_REVISION on the hub"),
    (GatedRepoError, "is gated: accept its terms on the hub, and set HF_TOKEN to a token of that account"),
    (RepositoryNotFoundError, "is not on the hub, or is private: check the name, or set HF_TOKEN"),
)
"""What the hub says for good. A gated repository counts as one that is not found, too."""

ABANDONED_SECONDS = 3600
"""A download that wrote nothing for so long is no longer one: the hub's client gives up after seconds."""


def _impatient_client() -> httpx2.Client:
    """The hub's own client, but that it waits for ever for no answer: a hub may say nothing."""
    client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _bound]}
    return client


def _bound(request: httpx2.Request) -> None:
    bounds = request.extensions.get("timeout") or {}
    if bounds.get("read") is None:
        request.extensions["timeout"] = httpx2.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT).as_dict()


set_client_factory(_impatient_client)


def download(settings: Settings, progress: Progress) -> Path:
    """The directory of the model that MODEL and MODEL_REVISION name, fetched where it is not whole.

    The cached one where the hub cannot be reached. Raises ModelLoadError, not permanent where the hub may
    answer another time.
    """
    progress(f"fetching {settings.model} from the hub")
    remove_abandoned(settings)
    path = _snapshot(settings, FILES)
    if has_safetensors(path):
        return path
    if not settings.model_allow_pickle:
        raise ModelLoadError(
            f"MODEL={settings.model} has no safetensors weights; pickled ones can run code when they are "
            "loaded: set MODEL_ALLOW_PICKLE=true if you trust their author"
        )
    return _snapshot(settings, FILES + PICKLED)


def remove_abandoned(settings: Settings) -> None:
    """Free the space of what killed downloads of this model left: the hub's client starts over."""
    folder = "models--" + settings.model.replace("/", "--")
    for path in (_cache(settings) / folder / "blobs").glob("*.incomplete"):
        # Another process may be writing to it, or remove it first.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _cache(settings: Settings) -> Path:
    return Path(settings.model_cache_dir or constants.HF_HUB_CACHE).expanduser()


def _snapshot(settings: Settings, files: Sequence[str]) -> Path:
    try:
        with only_errors_logged("huggingface_hub", "httpx2"):
            directory = snapshot_download(
                settings.model,
                revision=settings.model_revision or None,
                cache_dir=_cache(settings),
                local_files_only=settings.model_local_files_only,
                allow_patterns=list(files),
                ignore_patterns=list(UNUSED),
            )
        return Path(directory)
    except Exception as error:
        # The client's own errors, its HTTP library's, those of its faster protocol, the file system's.
        message = _refusal(settings, error)
        if message is not None:
            raise ModelLoadError(f"MODEL={settings.model} {message}") from error
        raise ModelLoadError(
            f"MODEL={settings.model} cannot be fetched from the hub: {_reason(error)}", permanent=False
        ) from error


def _refusal(settings: Settings, error: Exception) -> str | None:
    """Why trying again cannot help; None if it may."""
    if settings.model_local_files_only or _cause(error, OfflineModeIsEnabled):
        part = " as a whole" if isinstance(error, IncompleteSnapshotError) else ""
        return f"is not in the local cache{part}, and downloads are off"
    for kind, message in REFUSALS:
        if _cause(error, kind):
            return message
    refused = _cause(error, HfHubHTTPError)
    if isinstance(refused, HfHubHTTPError) and refused.response.status_code in (401, 403):
        return f"is refused by the hub with status {refused.response.status_code}: check HF_TOKEN"
    return None


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind in the chain of causes."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, kind):
        link = link.__cause__
    return link


def _reason(error: BaseException) -> str:
    """What was at the bottom of it, in one line."""
    refused = _cause(error, HfHubHTTPError)
    while error.__cause__ is not None and error is not refused:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

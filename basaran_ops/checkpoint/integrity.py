"""Whether a model's directory is whole: told by file, before gigabytes are read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from safetensors import safe_open
from transformers import AutoTokenizer

from ..engine.weights import REMOTE_CODE_NEEDED, Checkpoint, first_line, needs_remote_code, read_config
from ..errors import ModelLoadError
from ..settings import Settings

log = logging.getLogger(__name__)

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab*", "merges.txt", "dict.txt", "tekken.json", "tokenizer*.py"),
    *("*.model", "*.spm", "*.tiktoken", "*.codes", "*.tokenizer"),
)
"""One of these is there if there is a tokenizer, unless its class needs no file at all."""


def check_directory(path: Path, settings: Settings) -> None:
    """Raise a permanent ModelLoadError, in a line that names the file, for what is missing or damaged."""
    checkpoint = Checkpoint(path=path, tokenizer_path=path)
    config = read_config(checkpoint, settings)
    _check_weights(path, settings)
    _check_tokenizer(path, settings, getattr(config.get_text_config(), "vocab_size", None))


def has_safetensors(path: Path) -> bool:
    """Whether there are weights in the directory that cannot carry code."""
    return any(path.glob("*.safetensors"))


def _check_weights(path: Path, settings: Settings) -> None:
    if has_safetensors(path):
        for file in _shards(path, SAFETENSORS):
            _check_safetensors(file)
        return
    pickled = _shards(path, PICKLED)
    if not pickled:
        raise ModelLoadError(f"{path}: there are no weights in this directory, such as {SAFETENSORS}")
    if not settings.model_allow_pickle:
        raise ModelLoadError(
            f"{path}: there are only pickled weights ({pickled[0].name}), which can run code when they are "
            "loaded; set MODEL_ALLOW_PICKLE=true if you trust their author"
        )
    for file in pickled:
        _check_pickle(file)
    log.warning("MODEL_ALLOW_PICKLE: loading %s, a kind of file that can run code", pickled[0])


def _shards(path: Path, name: str) -> list[Path]:
    """The files that the weights are in, as transformers would choose them; all of them are there."""
    if (path / name).is_file():
        return [path / name]
    index = path / f"{name}.index.json"
    if not index.is_file():
        return []
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelLoadError(f"{index} has no weight_map")
    shards = [path / str(shard) for shard in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelLoadError(f"{index} names {missing[0]}, which is not there ({len(missing)} are missing)")
    return shards


def _check_safetensors(file: Path) -> None:
    """Read the header, which says how long the file is."""
    try:
        with safe_open(file, "np"):
            pass
    except Exception as error:
        with file.open("rb") as opened:
            if opened.read(19) == b"version https://git":
                raise ModelLoadError(f"{file} is a pointer of Git LFS: run `git lfs pull`") from error
        raise ModelLoadError(f"{file} is damaged or cut short: {first_line(error)}") from error


def _check_pickle(file: Path) -> None:
    """A zip archive, since torch 1.6, has its table of contents at its end."""
    with file.open("rb") as opened:
        zipped = opened.read(2) == b"PK"
    if zipped and not is_zipfile(file):
        raise ModelLoadError(f"{file} is damaged or cut short")


def _check_tokenizer(path: Path, settings: Settings, rows: int | None) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=settings.model_trust_remote_code, local_files_only=True
        )
    except Exception as error:
        # The Rust library raises plain Exception for a file that it cannot parse.
        raise ModelLoadError(_tokenizer_fault(path, error)) from error
    if tokenizer.vocab_files_names and not _has_tokenizer(path):
        # Some classes make up a tokenizer without words.
        raise ModelLoadError(f"{path}: there is no tokenizer in this directory, such as tokenizer.json")
    if rows is not None and tokenizer.vocab_size > rows:
        raise ModelLoadError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, more than the {rows} of the model's "
            "vocab_size in config.json"
        )


def _has_tokenizer(path: Path) -> bool:
    return any(next(path.glob(pattern), None) for pattern in TOKENIZER_FILES)


def _tokenizer_fault(path: Path, error: Exception) -> str:
    if needs_remote_code(error):
        return f"{path}: {REMOTE_CODE_NEEDED}"
    if not _has_tokenizer(path):
        return f"{path}: there is no tokenizer in this directory, such as tokenizer.json"
    for file in sorted(path.glob("*token*.json")):
        _read_json(file)
    return f"{path}: its tokenizer cannot be read: {first_line(error)}"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return content

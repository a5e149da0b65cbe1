"""Directories that are complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def complete_directory(directory: Path, build: Callable[[Path], None]) -> None:
    """Make sure that `directory` exists, complete: `build` fills a neighbour which then takes its name.

    Several processes may ask at once: one builds, the others wait. What an interrupted build left is removed,
    by itself where it can, else by the next.
    """
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(directory.name + ".lock")):
        if directory.is_dir():
            return
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            _open_up(partial)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _open_up(directory: Path) -> None:
    """Let whoever may enter the directory read its files: safetensors writes them for its own user alone, and
    a container that they are mounted into has another.
    """
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(directory.stat().st_mode & 0o666)

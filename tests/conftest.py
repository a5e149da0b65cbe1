"""Fixtures that more than one module needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from basaran_ops.checkpoint.default_model import default_model
from basaran_ops.checkpoint.resolve import cache_directory
from basaran_ops.settings import Settings

from .leaks import Holdings, leaks_since
from .running_server import RunningServer, running_server
from .tiny_models import save_tiny

# Models this small spend their time where threads wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a process or a descriptor behind."""
    before = Holdings.now()
    yield
    leaks = leaks_since(before)
    assert not leaks, f"left behind: {leaks}"


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The real default model, fetched and converted where the server keeps it."""
    return default_model(cache_directory(Settings()), False, print)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer. It never ends by itself."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", eos=None)


@pytest.fixture(scope="session")
def tiny_server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that answers at once, shared by all tests that leave it as it was."""
    log = tmp_path_factory.mktemp("tiny-server") / "log"
    with running_server(
        log, MODEL=str(tiny_path), SERVER_MODEL_NAME="org/tiny", ENGINE_SLOTS="4", MODEL_DTYPE="float32"
    ) as server:
        yield server.wait_ready()

"""Two servers that all clients share: one that answers at once, one that is soon full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A tiny model that also converses."""
    directory = tmp_path_factory.mktemp("clients")
    template = directory / "template.jinja"
    template.write_text(TEMPLATE)
    with running_server(
        directory / "log",
        MODEL=str(tiny_path),
        SERVER_MODEL_NAME="org/tiny",
        MODEL_CHAT_TEMPLATE=str(template),
        ENGINE_SLOTS="4",
        MODEL_DTYPE="float32",
    ) as server:
        yield server.wait_ready()


@pytest.fixture(scope="session")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, room for one more, one key, one model; an answer may go on for a minute."""
    directory = tmp_path_factory.mktemp("narrow")
    model = save_tiny(directory / "model", eos=None, max_position_embeddings=32768)
    with running_server(
        directory / "log",
        MODEL=str(model),
        SERVER_MODEL_NAME="org/tiny",
        SERVER_STRICT_MODEL="true",
        SERVER_API_KEYS="the-key",
        SERVER_QUEUE_LIMIT="1",
        ENGINE_SLOTS="1",
        MODEL_DTYPE="float32",
        ENGINE_CONTEXT_LENGTH="32768",
    ) as server:
        yield server.wait_ready()

"""Models in this process, shared by the tests that leave them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from basaran_ops import LibraryModel, load_model

from ..number_words import save_trained
from ..tiny_models import save_tiny

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ opening | default('assistant') }}: {% endif %}"
)


@pytest.fixture(scope="session")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can go on for thousands of tokens."""
    return save_tiny(tmp_path_factory.mktemp("long") / "model", eos=None, max_position_embeddings=8192)


@pytest.fixture(scope="session")
def numbers_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5, trained to write numbers as words."""
    return save_trained(tmp_path_factory.mktemp("numbers") / "model", "t5")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(long_path: Path, template: Path) -> Iterator[LibraryModel]:
    """Float32, eight slots: what it says is what generate() says."""
    with load_model(
        long_path,
        model_dtype="float32",
        engine_slots=8,
        engine_threads=1,
        model_chat_template=str(template),
    ) as model:
        yield model

"""What the library's docstrings and pages show is what happens, with the default model."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import basaran_ops
from basaran_ops import LibraryModel, choices, load_model, model

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/library.md"]


@pytest.fixture(scope="module")
def user_repo(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which "user/repo" is the default model."""
    directory = tmp_path_factory.mktemp("docs")
    (directory / "user").mkdir()
    (directory / "user" / "repo").symlink_to(default_model_path)
    return directory


@pytest.fixture(scope="module")
def loaded(default_model_path: Path) -> Iterator[LibraryModel]:
    with load_model(default_model_path, engine_slots=4) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def in_the_directory(user_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user_repo)


@pytest.mark.parametrize(
    ("module", "least"), [(basaran_ops, 1), (model, 7), (choices, 1)], ids=lambda value: str(value)[:40]
)
def test_the_examples_in_docstrings_are_true(module: ModuleType, least: int, loaded: LibraryModel) -> None:
    names = {"model": loaded, "reduce_choice": choices.reduce_choice, "load_model": load_model}
    tried = 0
    for test in doctest.DocTestFinder().find(module, extraglobs=names):
        runner = doctest.DocTestRunner()
        runner.run(test)
        assert runner.failures == 0, test.name
        tried += runner.tries
        assert not any(doctest.SKIP in example.options for example in test.examples)
    assert tried >= least


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_are_true(page: str, loaded: LibraryModel) -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    blocks = re.findall(r"```pycon\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {"model": loaded}
    for number, block in enumerate(blocks):
        test = parser.get_doctest(block, names, f"{page}, block {number}", page, 0)
        test.globs = names  # what one block names the next may use
        runner.run(test, clear_globs=False)
    assert runner.failures == 0

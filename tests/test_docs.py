"""What the docs name exists."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def names_of_tests() -> set[str]:
    names = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names.add(node.name)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_and_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"`(test_\w+)`", text)) <= names_of_tests()
    for name in re.findall(r"`((?:tests|docs|basaran_ops|benchmarks|deployments|helm)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_row_of_the_api_has_a_test() -> None:
    lines = (ROOT / "docs/api.md").read_text().splitlines()
    # A table's first two lines are its head.
    rows = [
        line
        for before, line in itertools.pairwise(lines)
        if line.startswith("| ") and before.startswith("| ") and not line.startswith("| ---")
    ]
    assert len(rows) > 90
    assert [row for row in rows if "`test_" not in row] == []


def test_every_field_of_a_request_is_in_the_tables() -> None:
    from basaran_ops.server.protocol import ChatRequest, CompletionRequest

    text = (ROOT / "docs/api.md").read_text()
    for name in CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys():
        assert f"`{name}" in text, name

"""docs/models.md is true of every architecture."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from ..architectures import ARCHITECTURES
from .model_facts import PAGE, Facts, measure, quiet

COLUMNS = 8


def rows() -> dict[str, Facts]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert all(len(row) == COLUMNS for row in cells)
    return {name: Facts(*facts) for name, *facts, _note in cells}


def test_the_page_has_every_architecture_and_promises_enough() -> None:
    found = rows()
    assert found.keys() == ARCHITECTURES.keys()
    assert len(found) >= 45
    assert sum(each.encoder_decoder for each in ARCHITECTURES.values()) >= 10
    for name, facts in found.items():
        assert (facts.greedy, facts.seeded) == ("yes", "yes"), f"{name}: `make models` found a defect"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_the_page_says_of_an_architecture_holds(name: str) -> None:
    with quiet():
        assert astuple(measure(name)) == astuple(rows()[name])

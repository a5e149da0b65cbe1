"""The table of what was done to servers and what came of it; `pytest -rP tests/faults` prints it."""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS = (
    *("fault", "times", "in flight", "complete", "clean errors", "cut", "hung"),
    *("leaked slots", "processes", "descriptors", "then"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    fault: str
    times: int
    in_flight: int
    complete: int
    errors: int
    cut: int
    hung: int
    slots: int
    processes: int
    descriptors: int
    then: str
    """How soon it served again, or was gone."""

    def cells(self) -> tuple[str, ...]:
        return tuple(str(getattr(self, name)) for name in self.__slots__)


@dataclass(slots=True)
class Table:
    """All rows of a run."""

    rows: list[Row]

    def __str__(self) -> str:
        lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

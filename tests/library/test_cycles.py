"""Models that are loaded and closed leave nothing behind. `make cycles` shows it for 1,000."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cycles import cycles


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch hands what it traces to whoever listens, whatever their level, and pytest keeps it all."""
    trace = logging.getLogger("torch.__trace")
    trace.addFilter(nothing)
    yield
    trace.removeFilter(nothing)


def nothing(record: logging.LogRecord) -> bool:
    return False


@pytest.mark.parametrize(("count", "compiled"), [(30, False), (6, True)])
def test_loads_and_closes_leave_nothing_behind(tiny_path: Path, count: int, compiled: bool) -> None:
    _, first, last = cycles(tiny_path, count, told=count // 2, engine_compile=compiled)
    assert (last.models, last.threads, last.descriptors) == (first.models, first.threads, first.descriptors)
    # Not one object a cycle. The allocator takes a while until its arenas no longer grow.
    assert last.objects - first.objects < count // 2
    assert last.resident - first.resident < 16 * 2**20

"""The soak and the overload, a minute of the one and the arithmetic of the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..running_server import running_server
from .overload import Answers, report
from .samples import Sample, Samples
from .soak import settings_of, soak


def test_a_minute_of_mixed_traffic_and_killed_engines_leaves_nothing(tiny_path: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, str(tiny_path))
    with running_server(tmp_path / "log", **settings) as server:
        server.wait_ready()
        verdict = soak(server, seconds=36, clients=6, every=15)
    assert verdict.faults == []
    assert verdict.asked > 500


def grown(per_minute: float) -> list[str]:
    """What is found where the server's memory grows by so many MiB a minute for an hour."""
    samples = Samples(server=None, worker=None)  # type: ignore[arg-type]
    samples.taken = [
        Sample(minute * 60.0, 150 + minute * per_minute, 400 + minute % 3, 35, 24, 0, 0)
        for minute in range(60)
    ]
    return samples.growth()


def test_memory_that_grows_is_found_and_memory_that_wavers_is_not() -> None:
    assert grown(0.0) == grown(0.1) == []
    assert len(grown(0.5)) == 1


def answers(ok: float, refused: float, *more: int) -> Answers:
    made = Answers({200: [ok] * 100, 429: [refused] * 1000})
    for status in more:
        made.note(status, 1.0)
    return made


@pytest.mark.parametrize(
    ("overloaded", "broken"),
    [
        (answers(1.4, 0.01), 0),
        (answers(1.6, 0.01), 1),
        (answers(1.0, 0.06), 1),
        (answers(1.0, 0.01, 500), 1),
        (answers(1.0, 0.01, 0), 1),
    ],
    ids=["within bounds", "slow", "refused late", "a failure", "a client that hangs"],
)
def test_each_bound_of_an_overload_can_be_broken(overloaded: Answers, broken: int) -> None:
    calm = Answers({200: [1.0] * 100})
    assert len(report(calm, overloaded, {"/livez": answers(0.01, 0.01)}, 10.0)) == broken + 1
    assert len(report(calm, overloaded, {"/livez": Answers({200: [0.01] * 100})}, 10.0)) == broken

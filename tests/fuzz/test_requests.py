from __future__ import annotations

from pathlib import Path

from .effort import EFFORT
from .requests import fuzz, fuzzed_server


def test_nothing_that_a_client_sends_fails_hangs_or_takes_a_slot(tiny_path: Path, tmp_path: Path) -> None:
    with fuzzed_server(tmp_path, tiny_path) as server:
        report = fuzz(server, 3000 * EFFORT, seed=1)
    print(report)
    assert {"200", "400", "401", "404", "405", "413", "417"} <= set(report.statuses)

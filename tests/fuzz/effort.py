"""How long to look for what nobody thought of."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EFFORT = int(os.environ.get("FUZZ_EFFORT", "1"))
"""How many times as many examples as in every run of the tests."""


def examples(count: int, **more: int) -> settings:
    """So many, times the effort. The same ones in each run, unless more are wanted than usual."""
    return settings(
        max_examples=count * EFFORT,
        derandomize=EFFORT == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **more,
    )

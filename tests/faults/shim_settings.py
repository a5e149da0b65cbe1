"""The environment of servers that can be hurt."""

from __future__ import annotations

import os
from pathlib import Path

SHIM = Path(__file__).parent / "shim"
ROOT = Path(__file__).parents[2]

FAULTY = {"PYTHONPATH": f"{SHIM}{os.pathsep}{ROOT}"}
"""Engines misbehave when they are asked to."""

COUNTING = FAULTY | {"FAULTS_ENGINE": "counting"}
"""The same with an engine that starts in no time, and whose answers are known."""

"""How the slow parts of making a model ready are told."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with a sentence at the start of each stage. May raise to stop the work."""

"""Print what the image needs installed beside the project itself: its dependencies and those of tracing."""

from __future__ import annotations

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"]["otel"], sep="\n")

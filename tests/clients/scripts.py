"""Clients that need a process of their own: another Python, Node, or threads that live as long as it does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# litellm and llama-index want older releases of packages that the server and its other clients need newer.
APART = ROOT / ".venv" / "apart" / "bin" / "python"
NODE_MODULES = Path(__file__).parent / "node" / "node_modules"
SECONDS = 240.0


def findings(directory: Path, command: list[str | Path], **environ: str) -> dict[str, Any]:
    """Run a script that writes what it found, as JSON, to the file that is its last argument.

    Not to its output: libraries print there.
    """
    found = directory / "found.json"
    done = subprocess.run(
        [*command, found],
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    result: dict[str, Any] = json.loads(found.read_text())
    return result


def installed(path: Path) -> Path:
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: `make clients`"
    return path

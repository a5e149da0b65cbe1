"""schemathesis over the server's own description. `python -m tests.schema_fuzz 2000` is the long run."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .running_server import RunningServer, running_server
from .tiny_models import save_tiny

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def fuzz(server: RunningServer, examples: int, seed: int) -> int:
    """Send generated requests, valid and not, to every operation; how many. Fails if any check does."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--max-examples", str(examples), "--seed", str(seed)]
    command += ["--request-timeout", "60", "--no-color", "--continue-on-failure"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=server.log.parent)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert counted is not None, result.stdout
    health = server.health()
    assert (health["ready"], health["outstanding"], health["replicas"][0]["restarts"]) == (True, 0, 0)
    assert "a request failed unexpectedly" not in server.log.read_text()
    return int(counted[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "template").write_text(TEMPLATE)
        with running_server(
            directory / "log",
            MODEL=str(save_tiny(directory / "model")),
            MODEL_CHAT_TEMPLATE=str(directory / "template"),
            ENGINE_SLOTS="4",
            ENGINE_CONTEXT_LENGTH="128",
        ) as server:
            server.wait_ready()
            print(f"{fuzz(server, int(sys.argv[1]), seed=2)} cases, all checks passed")


if __name__ == "__main__":
    main()

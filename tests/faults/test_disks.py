"""Disks that are full or cannot be written to: for the log, for temporary files, for models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ..fake_hub import FakeHub, fake_hub
from ..running_server import running_server
from .belongings import processes_of
from .clients import Crowd, ask
from .conftest import SMALL
from .table import Table
from .watch import SHORT, fault, the_end

NOWHERE = dict.fromkeys(("HOME", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME", "HF_HOME"), "/dev/full")
"""Nothing can be written where programs usually write: it is no directory."""

KIB = 1024


def shell(script: str) -> list[str]:
    """Start the server by a line of a shell's."""
    return ["bash", "-c", script, sys.executable]


@pytest.fixture
def hub(tiny_path: Path) -> Iterator[FakeHub]:
    with fake_hub(FakeHub(repos={"org/tiny": tiny_path})) as hub:
        yield hub


def test_with_a_full_disk_under_the_log_and_nowhere_to_write_it_serves_and_ends(
    roomy_path: Path, tmp_path: Path, table: Table
) -> None:
    command = shell('exec "$0" -m basaran_ops >/dev/full 2>&1')
    with running_server(tmp_path / "log", command, **SMALL | NOWHERE | {"MODEL": str(roomy_path)}) as server:
        server.wait_ready()
        with fault(
            server, table, "log, home and tmp on a full disk", body=SHORT | {"max_tokens": 50}
        ) as happening:
            # Each is worth a line of the log.
            happening.endings += Crowd(server.port, 16, SHORT).join()
            happening.ask({"prompt": [5], "n": 0})
        with the_end(server, table, "SIGTERM with the log on a full disk"):
            server.process.terminate()


def test_with_nobody_to_read_the_log_it_serves_and_ends(
    counting_settings: dict[str, str], tmp_path: Path, table: Table
) -> None:
    command = shell('exec > >(head -c 10 >/dev/null) 2>&1; exec "$0" -m basaran_ops')
    with running_server(tmp_path / "log", command, **counting_settings) as server:
        server.wait_ready()
        with fault(server, table, "log to a pipe that nobody reads") as happening:
            happening.endings += Crowd(server.port, 16, SHORT).join()
        with the_end(server, table, "SIGTERM with the log to a broken pipe"):
            server.process.terminate()


def test_a_disk_that_is_full_while_a_model_is_fetched_is_waited_for(
    hub: FakeHub, tmp_path: Path, table: Table
) -> None:
    """No file may grow beyond 300 KiB: what is written of the weights until then fails as on a full disk."""
    settings = SMALL | {
        "MODEL": "org/tiny",
        "MODEL_CACHE_DIR": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
    }
    command = shell('ulimit -S -f 300; exec "$0" -m basaran_ops')
    with running_server(tmp_path / "log", command, **settings) as server:
        server.wait_for(lambda health: health["replicas"][0]["restarts"] >= 1, 60)
        refused = ask(server.port, SHORT)
        assert (refused.how, refused.status) == ("error", 503)
        assert httpx.get(f"{server.management_url}/livez").status_code == 200
        for process in processes_of(server):
            process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        server.wait_ready()
        assert ask(server.port, SHORT).how == "complete"
    log = server.log.read_text()
    assert "MODEL=org/tiny cannot be fetched from the hub: " in log
    assert "File too large" in log
    assert "Traceback" not in log


def test_a_cache_that_cannot_be_written_to_is_told_by_name(hub: FakeHub, tmp_path: Path) -> None:
    settings = SMALL | {"MODEL": "org/tiny", "MODEL_CACHE_DIR": "/sys/nowhere", "HF_ENDPOINT": hub.url}
    with running_server(tmp_path / "log", **settings) as server:
        server.wait_for(lambda health: health["replicas"][0]["restarts"] >= 1, 60)
        refused = ask(server.port, SHORT)
        assert (refused.how, refused.status) == ("error", 503)
        assert httpx.get(f"{server.management_url}/livez").status_code == 200
    log = server.log.read_text()
    assert "/sys/nowhere" in log
    assert "Traceback" not in log

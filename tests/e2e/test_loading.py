"""How the whole server gets its model, or says why it does not: the hub's bad days, damage, devices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from basaran_ops.pool.placement import usable_cores

from ..fake_hub import FakeHub, fake_hub
from ..running_server import RunningServer, free_port, running_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tiny_path: Path) -> Iterator[FakeHub]:
    with fake_hub(FakeHub(repos={"org/tiny": tiny_path})) as hub:
        yield hub


def hub_settings(tmp_path: Path, url: str) -> dict[str, str]:
    home = str(tmp_path / "home")
    return {
        "MODEL": "org/tiny",
        "MODEL_CACHE_DIR": str(tmp_path / "cache"),
        "HF_ENDPOINT": url,
        "HF_HOME": home,
        "LOG_FORMAT": "json",
    }


def records(server: RunningServer) -> list[dict[str, str]]:
    """The log, every line of which is JSON."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def errors(server: RunningServer) -> list[str]:
    return [record["event"] for record in records(server) if record["level"] in ("error", "critical")]


def engines(server: RunningServer) -> list[psutil.Process]:
    return [p for p in server.processes() if "basaran_ops.engine_process" in p.cmdline()]


def test_a_hub_that_is_down_at_first_is_waited_for(tiny_path: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = hub_settings(tmp_path, f"http://127.0.0.1:{port}")
    with running_server(tmp_path / "log", **settings) as server:
        health = server.wait_for(lambda health: health["replicas"][0]["restarts"] >= 1, 60)
        assert health["status"] != "ready"
        refused = server.complete(prompt="x")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        with fake_hub(FakeHub(repos={"org/tiny": tiny_path}), port):
            server.wait_ready()
        assert server.complete(prompt="x", max_tokens=2).json()["usage"]["completion_tokens"] == 2
    assert not [record for record in records(server) if "HTTP Request" in record["event"]]
    told = errors(server)
    assert told
    for line in told:
        assert line.startswith("engine 0 failed, restarting in ")
        assert "MODEL=org/tiny cannot be fetched from the hub: " in line
        assert line.endswith("Connection refused")


def test_a_gated_model_ends_the_server_with_one_clear_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.status, hub.error_code, hub.files_only = 401, "GatedRepo", True
    with running_server(tmp_path / "log", **hub_settings(tmp_path, hub.url)) as server:
        assert server.process.wait(60) == 3
    named = (
        "the model cannot be loaded: MODEL=org/tiny is gated: accept its terms on the hub, and set HF_TOKEN"
    )
    assert errors(server)[0] == f"{named} to a token of that account"
    assert "Traceback" not in server.log.read_text()


def test_sigterm_while_a_model_is_fetched_ends_in_time_and_the_next_start_fetches_it_whole(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.stall_at = 1000
    with running_server(tmp_path / "log", **hub_settings(tmp_path, hub.url)) as server:
        assert hub.stalled.wait(60)
        server.wait_for(lambda health: health["replicas"][0]["stage"] == "fetching org/tiny from the hub")
        server.terminate()
    hub.stall_at = None
    with running_server(tmp_path / "log", **hub_settings(tmp_path, hub.url)) as server:
        server.wait_ready()
        assert server.complete(prompt="x", max_tokens=2).status_code == 200


def test_a_damaged_model_ends_the_server_with_one_line_and_no_table(tiny_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_path, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with running_server(tmp_path / "log", MODEL=str(path), LOG_FORMAT="json") as server:
        assert server.process.wait(60) == 3
    assert errors(server)[0].startswith(f"the model cannot be loaded: {path}: model.layers.0.mlp.down_proj")
    assert not [record for record in records(server) if record["level"] == "warning"]
    assert not [record for record in records(server) if "\n" in record["event"]]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
@pytest.mark.skipif(len(usable_cores()) < 2, reason="there is one core")
def test_replicas_on_a_cpu_have_cores_of_their_own(tiny_path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_server(log, MODEL=str(tiny_path), ENGINE_REPLICAS="2", ENGINE_DEVICE="cpu") as server:
        server.wait_for(lambda h: [r["state"] for r in h["replicas"]] == ["ready", "ready"], 90)
        first, second = (set(process.cpu_affinity()) for process in engines(server))
        assert not first & second
        assert first | second == usable_cores()
        assert server.complete(prompt="x", max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    "command", [["-m", "basaran_ops"], ["-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]]
)
def test_more_gpus_than_there_are_are_refused_before_anything_starts(command: list[str]) -> None:
    asked = {"GPUS_PER_REPLICA": "2", "ENGINE_REPLICAS": "3", "CUDA_VISIBLE_DEVICES": "0,1"}
    result = subprocess.run(
        [sys.executable, *command], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert result.stderr.splitlines() == [
        "invalid settings:",
        "ENGINE_REPLICAS=3 x GPUS_PER_REPLICA=2 = 6 GPUs are asked for, but CUDA_VISIBLE_DEVICES=0,1 gives 2",
    ]

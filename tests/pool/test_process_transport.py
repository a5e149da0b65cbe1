from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from basaran_ops.errors import EngineFailed
from basaran_ops.pool import GenerationPool, ProcessTransport
from basaran_ops.pool.process_transport import visible_devices
from basaran_ops.settings import Settings

from .fake_engine import DIE
from .test_pool import eventually, read, work

ROOT = Path(__file__).parents[2]
ENVIRON = os.environ | {"PYTHONPATH": str(ROOT)}
FAKE = "tests.pool.fake_engine"


@pytest.fixture
def pool() -> Iterator[GenerationPool]:
    pool = GenerationPool([partial(ProcessTransport, Settings(), ENVIRON, FAKE)], capacity=10)
    pool.start()
    pool.wait_ready(20)
    yield pool
    pool.close()


def engine_pid() -> int:
    (engine,) = (child for child in psutil.Process().children() if FAKE in child.cmdline())
    return engine.pid


def test_tokens_come_over_the_pipe(pool: GenerationPool) -> None:
    tokens = read(pool.submit(work(3)))
    assert [[token % 1000 for token in tokens[index]] for index in range(3)] == [[0, 1, 2]] * 3


def test_a_killed_engine_fails_its_streams_and_is_replaced(pool: GenerationPool) -> None:
    stream = pool.submit(work(max_tokens=100000))
    stream.take(5)
    killed = engine_pid()
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineFailed, match="died"):
        read(stream)
    eventually(lambda: pool.status().ready)
    assert engine_pid() != killed
    assert len(read(pool.submit(work()))[0]) == 3


def test_an_engine_that_exits_by_itself_is_replaced(pool: GenerationPool) -> None:
    with pytest.raises(EngineFailed):
        read(pool.submit(work(prompt=DIE)))
    eventually(lambda: pool.status().ready)


def test_a_stopped_engine_blocks_no_request_and_does_not_prevent_the_end(pool: GenerationPool) -> None:
    os.kill(engine_pid(), signal.SIGSTOP)
    started = time.monotonic()
    # Far more than a socket buffer holds.
    streams = [pool.submit(work(prompt=tuple(range(100000)))) for _ in range(10)]
    assert time.monotonic() - started < 1
    for stream in streams:
        pool.release(stream)


def test_the_engine_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The real engine process, while it fetches its model; with what it started itself."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from basaran_ops.pool import ProcessTransport\n"
        "from basaran_ops.settings import Settings\n"
        f"transport = ProcessTransport(Settings(model_cache_dir={str(tmp_path)!r}), os.environ)\n"
        "print(transport.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=ENVIRON)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 30
    while not (pip := engine.children()):
        assert time.monotonic() < deadline, "nothing was fetched"
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([engine, *pip], timeout=10)
    assert not alive
    assert not list((tmp_path / "basaran_ops").glob("*.partial")), "something half-made was left"


@pytest.mark.parametrize(
    ("replica", "replicas", "environ", "expected"),
    [
        (0, 1, {"CUDA_VISIBLE_DEVICES": "3"}, {}),
        (1, 2, {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "4,6"}, {"CUDA_VISIBLE_DEVICES": "6"}),
        (1, 2, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_each_replica_sees_its_own_gpu(
    replica: int, replicas: int, environ: dict[str, str], expected: dict[str, str]
) -> None:
    assert visible_devices(replica, replicas, environ) == expected


def test_more_replicas_than_visible_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=4"):
        visible_devices(0, 2, {"CUDA_VISIBLE_DEVICES": "4"})

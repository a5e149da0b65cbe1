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
from basaran_ops.pool.messages import Loading, Ready
from basaran_ops.pool.placement import Placement
from basaran_ops.settings import Settings

from ..tiny_models import save_tiny
from .fake_engine import DIE
from .test_pool import eventually, read, work

ROOT = Path(__file__).parents[2]
ENVIRON = os.environ | {"PYTHONPATH": str(ROOT)}
FAKE = "tests.pool.fake_engine"


@pytest.fixture
def pool() -> Iterator[GenerationPool]:
    pool = GenerationPool([partial(ProcessTransport, Settings(), Placement(ENVIRON), FAKE)], capacity=10)
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
        "from basaran_ops.pool.placement import Placement\n"
        "from basaran_ops.settings import Settings\n"
        f"settings = Settings(model_cache_dir={str(tmp_path)!r})\n"
        "transport = ProcessTransport(settings, Placement(os.environ))\n"
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


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_an_engine_stays_on_its_cores_with_as_many_threads(tmp_path: Path) -> None:
    """The real engine process, until it has loaded; with every thread that it started."""
    core = max(os.sched_getaffinity(0))
    path = save_tiny(tmp_path / "model")
    settings = Settings(model=str(path), engine_slots=2, engine_context_length=64, model_dtype="float32")
    transport = ProcessTransport(settings, Placement(ENVIRON, frozenset({core}), threads=1))
    try:
        while not isinstance(message := transport.receive(), Ready):
            assert isinstance(message, Loading)
        threads = [int(task.name) for task in Path(f"/proc/{transport.pid}/task").iterdir()]
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({core})}
    finally:
        transport.close()


def test_settings_reach_the_engine_with_its_share_of_the_threads() -> None:
    settings = Settings(model="/no/such/model")
    transport = ProcessTransport(settings, Placement(ENVIRON, threads=3), "tests.pool.echo_settings")
    try:
        received = transport.receive()
    finally:
        transport.close()
    assert received == settings.model_copy(update={"engine_threads": 3})

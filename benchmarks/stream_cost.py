"""What streaming costs: the server's CPU for each event, and how much it slows the engine's steps.

`python -m benchmarks.stream_cost [MODEL]` serves the model, or the default one, with 64 slots, generates 64
sequences, alternately as one plain request and as 64 streams, and prints medians.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

SEQUENCES = 64
TOKENS = 64
ROUNDS = 3
PORT, MANAGEMENT_PORT = 8973, 8974
URL = f"http://127.0.0.1:{PORT}"


@contextmanager
def server(model: str) -> Iterator[psutil.Process]:
    """The HTTP process of a server that is ready."""
    environ = {
        "MODEL": model,
        "HOST": "127.0.0.1",
        "PORT": str(PORT),
        "MANAGEMENT_PORT": str(MANAGEMENT_PORT),
        "ENGINE_SLOTS": str(SEQUENCES),
        "ENGINE_CONTEXT_LENGTH": "512",
        "ENGINE_PREFIX_CACHE": "false",
    }
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "basaran_ops"], env=os.environ | environ, stdout=log, stderr=log
        )
        try:
            while not _ready():
                time.sleep(0.5)
            (worker,) = psutil.Process(process.pid).children()
            yield worker
        finally:
            process.terminate()
            process.wait()


def _ready() -> bool:
    try:
        return httpx.get(f"{URL}/health").status_code == 200
    except httpx.TransportError:
        return False


def run(worker: psutil.Process, *, streams: bool) -> tuple[float, float, int]:
    """Median milliseconds of an engine step with all sequences; the server's CPU seconds; events sent."""
    before = _cpu(worker)
    steps, events = asyncio.run(_run(streams=streams))
    return statistics.median(steps) * 1000, _cpu(worker) - before, events


def _cpu(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return float(times.user + times.system)


async def _run(*, streams: bool) -> tuple[list[float], int]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=URL, timeout=600, limits=limits) as client:
        done = asyncio.Event()
        watching = asyncio.create_task(_watch(client, done))
        if streams:
            events = sum(await asyncio.gather(*(_stream(client, number) for number in range(SEQUENCES))))
        else:
            prompts = [f"Story number {number}:" for number in range(SEQUENCES)]
            await client.post("/v1/completions", json=_fields(prompts))
            events = 0
        done.set()
        return await watching, events


async def _stream(client: httpx.AsyncClient, number: int) -> int:
    events = 0
    body = _fields(f"Story number {number}:") | {"stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for chunk in response.aiter_raw():
            events += chunk.count(b"data: ")
    return events


def _fields(prompt: str | list[str]) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}


async def _watch(client: httpx.AsyncClient, done: asyncio.Event) -> list[float]:
    """Durations of steps in which every sequence decoded."""
    seen: dict[int, float] = {}
    while not done.is_set():
        stats = (await client.get("/health")).json()["replicas"][0]["stats"]
        if stats["batch_size"] == stats["batch_tokens"] == SEQUENCES:
            seen[stats["step"]] = stats["duration"]
        await asyncio.sleep(0.1)
    return list(seen.values())


def main() -> None:
    rows = []
    with server(sys.argv[1] if len(sys.argv) > 1 else "") as worker:
        run(worker, streams=True)
        for _ in range(ROUNDS):
            rows.append((run(worker, streams=False), run(worker, streams=True)))
            print(rows[-1], flush=True)
    plain = statistics.median(row[0][0] for row in rows)
    streamed = statistics.median(row[1][0] for row in rows)
    cost = statistics.median(row[1][1] / row[1][2] for row in rows)
    result = {
        "step_ms_plain": round(plain, 1),
        "step_ms_streamed": round(streamed, 1),
        "slower_by": f"{streamed / plain - 1:.1%}",
        "server_cpu_us_per_event": round(cost * 1e6),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

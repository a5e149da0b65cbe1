"""Ten times as many requests as can be served: `python -m tests.faults.overload --minutes 5`.

First a closed loop with a client for each slot says what the server can do. Then requests come at ten times
that rate, whether or not any is answered, each on a connection of its own. Those that are taken must be about
as fast as before, the others be refused at once, the probes answer, and memory stay what it is.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny
from .belongings import processes_of
from .clients import request_bytes
from .samples import Samples

FACTOR = 10.0
"""Of the capacity that is offered."""

SLOWER = 1.5
"""Times as long as without overload that what is taken may need, at the 95th percentile."""

REFUSED_SECONDS = 0.05
"""In which it is refused, at the 99th percentile."""

PROBE_SECONDS = 0.1
"""In which a probe answers, at the 99th percentile."""

PROBES = ("/livez", "/readyz", "/metrics")

CALIBRATION_SECONDS = 15.0

PATIENCE = 60.0
"""Seconds after which a client counts as hung."""


@dataclass(slots=True)
class Answers:
    """How long answers took, by their status; 0 for none."""

    times: dict[int, list[float]] = field(default_factory=dict)

    def note(self, status: int, seconds: float) -> None:
        self.times.setdefault(status, []).append(seconds)

    def counts(self) -> dict[int, int]:
        return {status: len(times) for status, times in sorted(self.times.items())}

    def percentile(self, status: int, percent: int) -> float:
        times = self.times.get(status, [])
        return statistics.quantiles(times, n=100)[percent - 1] if len(times) > 1 else float("inf")


async def exchange(port: int, request: bytes) -> tuple[int, float]:
    """The status of the answer to a request, and the seconds from connecting to its last byte."""
    started = time.perf_counter()
    status = 0
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                status = int(head.split(None, 2)[1])
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, IndexError):
        return 0, time.perf_counter() - started
    return status, time.perf_counter() - started


async def closed_loop(port: int, request: bytes, clients: int, seconds: float) -> Answers:
    """So many clients, each with its next request when its last one ends."""
    answers, until = Answers(), time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            answers.note(*await exchange(port, request))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(port: int, request: bytes, rate: float, seconds: float) -> Answers:
    """Requests at a rate, at random times, whatever becomes of them."""
    answers, random = Answers(), Random(1)
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        answers.note(*await exchange(port, request))

    started = time.perf_counter()
    due = 0.0
    while (due := due + random.expovariate(rate)) < seconds:
        late = started + due - time.perf_counter()
        if late > 0:
            await asyncio.sleep(late)
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return answers


async def probe(port: int, over: asyncio.Event) -> dict[str, Answers]:
    """Ask each probe a few times a second."""
    answers = {path: Answers() for path in PROBES}
    while not over.is_set():
        for path in PROBES:
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            answers[path].note(*await exchange(port, head))
            await asyncio.sleep(0.1)
    return answers


async def overload(
    server: RunningServer, samples: Samples, request: bytes, slots: int, seconds: float
) -> list[str]:
    """Offer too much for so long; what is broken by it."""
    await closed_loop(server.port, request, slots, 3)
    calm = await closed_loop(server.port, request, slots, CALIBRATION_SECONDS)
    rate = len(calm.times[200]) / CALIBRATION_SECONDS
    print(f"unsaturated, {slots} at once: {rate:.1f} requests/s, {timing(calm, 200)}", flush=True)
    over = asyncio.Event()
    probes = asyncio.create_task(probe(server.management_port, over))
    sampling = asyncio.create_task(sample(samples, over, seconds / 30))
    answers = await open_loop(server.port, request, FACTOR * rate, seconds)
    over.set()
    await sampling
    return report(calm, answers, await probes, FACTOR * rate) + samples.growth()


async def sample(samples: Samples, over: asyncio.Event, pause: float) -> None:
    while not over.is_set():
        await asyncio.to_thread(samples.take)
        await asyncio.sleep(pause)


def report(calm: Answers, answers: Answers, probes: dict[str, Answers], rate: float) -> list[str]:
    """Print the figures; the bounds that they break."""
    ratio = answers.percentile(200, 95) / calm.percentile(200, 95)
    print(f"offered {rate:.1f} requests/s: {answers.counts()}")
    print(f"taken: {timing(answers, 200)}, p95 is {ratio:.2f} of the unsaturated")
    print(f"refused: {timing(answers, 429)}")
    broken = []
    if ratio > SLOWER:
        broken.append(f"what is taken is {ratio:.2f} times as slow as without overload")
    if answers.percentile(429, 99) > REFUSED_SECONDS:
        broken.append(f"p99 of refusals is {answers.percentile(429, 99) * 1000:.0f} ms")
    if set(answers.times) != {200, 429}:
        broken.append(f"answers are {answers.counts()}")
    for path, told in probes.items():
        print(f"{path}: {told.counts()}, {timing(told, 200)}")
        if set(told.times) != {200} or told.percentile(200, 99) > PROBE_SECONDS:
            broken.append(f"{path}: {told.counts()}, p99 {told.percentile(200, 99) * 1000:.0f} ms")
    return broken


def timing(answers: Answers, status: int) -> str:
    p50, p95, p99 = (answers.percentile(status, percent) * 1000 for percent in (50, 95, 99))
    return f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument(
        "--model", default="tiny", help="tiny, or what MODEL takes; empty for the default model"
    )
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument(
        "--queue", type=int, default=0, help="SERVER_QUEUE_LIMIT: who waits is not faster for it"
    )
    parser.add_argument("--tokens", type=int, default=256)
    chosen = parser.parse_args(arguments)
    request = request_bytes(
        {"prompt": [5, 6, 7], "max_tokens": chosen.tokens, "ignore_eos": True}, head="Connection: close\r\n"
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = str(save_tiny(directory / "model", eos=None)) if chosen.model == "tiny" else chosen.model
        own = {"ENGINE_SLOTS": str(chosen.slots), "SERVER_QUEUE_LIMIT": str(chosen.queue), "MODEL": model}
        with running_server(directory / "log", LOG_FORMAT="json", **own) as server:
            server.wait_ready()
            samples = Samples(server, processes_of(server)[1])
            broken = asyncio.run(overload(server, samples, request, chosen.slots, chosen.minutes * 60))
    for bound in broken:
        print(f"broken: {bound}")
    print("broken" if broken else "all bounds hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

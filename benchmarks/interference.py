"""What a long prompt costs the streams that run while it is read.

`python -m benchmarks.interference` serves the default model and prints, for each number of streams, their
inter-token latency before and beside a prompt of 4,000 tokens, and what that prompt waits for its first
token. Medians of the rounds. `--against NAME=URL` measures another server the same way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from .figures import median, quantile
from .load import Stream, Target, add_targets, connect, follow, targets
from .processes import serve
from .workloads import Words, default_words

PORT = 8971
CONTEXT = 4200
PROMPT = 4000
RUNNING = 100
"""Tokens of a stream's own prompt."""
BEFORE = 100
"""Tokens that each stream gets before the long prompt comes; the first half of them are not looked at."""
MOST = 3000
"""Tokens that a stream asks for: more than come while the prompt is read."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One round, in seconds."""

    before_p50: float
    before_p95: float
    before_p99: float
    beside_p50: float
    beside_p95: float
    beside_p99: float
    ratio_p50: float
    """How many times longer: beside, by before."""
    ratio_p95: float
    first_token: float
    """Of the long prompt."""


async def measure(target: Target, words: Words, streams: int, seed: int) -> Figures:
    """One round: streams, then a long prompt, and an end to all when that has its first token."""
    random = Random(f"{streams} {seed}")
    running = [Stream() for _ in range(streams)]
    async with connect(target) as session, asyncio.TaskGroup() as group:
        # Sampled, so that none of them gets several tokens in a step.
        tasks = [
            group.create_task(
                follow(session, target, words.text(random, RUNNING), MOST, stream=stream, temperature=1)
            )
            for stream in running
        ]
        # A look now and then costs less than an event a token.
        while min(len(stream.events) for stream in running) < BEFORE:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        long = await follow(session, target, words.text(random, PROMPT), 1)
        for task in tasks:
            task.cancel()
    return figures(running, long)


def figures(running: Sequence[Stream], long: Stream) -> Figures:
    """Of streams, and the prompt that came while they ran."""
    came = long.started, long.started + long.events[0]
    shares = (0.5, 0.95, 0.99)
    before = [quantile(gaps_within(running, 0, came[0]), share) for share in shares]
    beside = [quantile(gaps_within(running, *came), share) for share in shares]
    return Figures(*before, *beside, beside[0] / before[0], beside[1] / before[1], long.events[0])


def gaps_within(streams: Sequence[Stream], start: float, end: float) -> list[float]:
    """The gaps that ended within, but those of the first tokens: streams were still coming."""
    return [
        gap
        for stream in streams
        for at, gap in list(zip(stream.events[1:], stream.gaps, strict=True))[BEFORE // 2 :]
        if start < stream.started + at <= end
    ]


HEAD = (
    f"{'streams':>7}  {'server':14}{'before ms p50':>13}{'p95':>7}{'p99':>7}"
    f"{'beside p50':>12}{'p95':>7}{'p99':>7}{'ratio p50':>11}{'p95':>7}{'TTFT s':>8}"
)


def row(streams: int, server: str, measured: Figures) -> str:
    a, b, c, d, e, f = (seconds * 1000 for seconds in list(asdict(measured).values())[:6])
    return (
        f"{streams:7}  {server:14}{a:13.1f}{b:7.1f}{c:7.1f}{d:12.1f}{e:7.1f}{f:7.1f}"
        f"{measured.ratio_p50:11.2f}{measured.ratio_p95:7.2f}{measured.first_token:8.2f}"
    )


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interference", description=__doc__)
    add_targets(parser)
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--without-own", action="store_true", help="measure the others only")
    options = parser.parse_args(arguments or sys.argv[1:])
    model, words = default_words()
    counts = [int(number) for number in options.streams.split(",")]
    servers = targets(options)
    results = []
    with ExitStack() as stack:
        if not options.without_own:
            settings = {
                "MODEL": str(model),
                "ENGINE_SLOTS": str(max(counts) + 1),
                "ENGINE_CONTEXT_LENGTH": str(CONTEXT),
            }
            url, _ = stack.enter_context(serve(PORT, settings))
            servers.insert(0, Target("basaran_ops", url, "default"))
        print(HEAD)
        for count in counts:
            for server in servers:
                rounds = [asyncio.run(measure(server, words, count, seed)) for seed in range(options.rounds)]
                print(row(count, server.name, median(rounds)), flush=True)
                results += [{"streams": count, "server": server.name, **asdict(one)} for one in rounds]
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

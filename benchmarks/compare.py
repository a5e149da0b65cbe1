"""Throughput and latency under closed-loop load, of this server and of others, side by side.

`python -m benchmarks.compare` serves the default model and prints a table; `--against NAME=URL` measures any
OpenAI-compatible server the same way, in alternating runs, and adds ratios. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basaran_ops.settings import Settings

from .figures import median, quantile
from .load import Load, Target, add_targets, run, targets
from .processes import Usage, serve
from .workloads import WORKLOADS, Words, Workload, default_words

PORT = 8971
TOKENS = 64
WAVES = {1: 8, 4: 4}
"""Requests of each client, by the number of clients; 3 for more. Whole waves, for a tail is no load."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Seconds, but for what its name says."""

    tokens_per_second: float
    first_token_p50: float
    first_token_p95: float
    first_token_p99: float
    inter_token_p50: float
    inter_token_p95: float
    inter_token_p99: float
    cpu_seconds_per_1000_tokens: float
    peak_megabytes: float


def measure(
    target: Target, words: Words, workload: Workload, clients: int, seed: int, waves: int | None = None
) -> Figures:
    """One run of whole waves."""
    prompts = words.prompts(workload, seed)
    with Usage(target.url) as usage:
        load = run(target, prompts, clients=clients, waves=waves or WAVES.get(clients, 3), tokens=TOKENS)
    return _figures(load, usage)


def _figures(load: Load, usage: Usage) -> Figures:
    first = [stream.events[0] for stream in load.streams]
    gaps = [gap for stream in load.streams for gap in stream.gaps]
    tokens = sum(stream.tokens for stream in load.streams)
    return Figures(
        load.tokens_per_second,
        *(quantile(first, share) for share in (0.5, 0.95, 0.99)),
        *(quantile(gaps, share) for share in (0.5, 0.95, 0.99)),
        usage.cpu_seconds / tokens * 1000,
        usage.peak_bytes / 1e6,
    )


def table(results: dict[tuple[str, int], dict[str, list[Figures]]], own: str) -> str:
    """Rows by workload, clients and server."""
    head = (
        f"{'workload':9}{'clients':>8}  {'server':14}{'tok/s':>8}{'ratio':>7}"
        f"{'TTFT ms p50':>13}{'p95':>7}{'p99':>7}{'ITL ms p50':>12}{'p95':>7}{'p99':>7}"
        f"{'CPU s/1k':>10}{'MB':>7}"
    )
    lines = [head]
    for (workload, clients), servers in results.items():
        reference = median(servers[own]).tokens_per_second if own in servers else None
        for name, runs in servers.items():
            figures = median(runs)
            ratio = (
                f"{reference / figures.tokens_per_second:7.2f}" if reference and name != own else f"{'':7}"
            )
            times = [figures.first_token_p50, figures.first_token_p95, figures.first_token_p99]
            gaps = [figures.inter_token_p50, figures.inter_token_p95, figures.inter_token_p99]
            lines.append(
                f"{workload:9}{clients:8}  {name:14}{figures.tokens_per_second:8.1f}{ratio}"
                f"{times[0] * 1000:13.0f}{times[1] * 1000:7.0f}{times[2] * 1000:7.0f}"
                f"{gaps[0] * 1000:12.1f}{gaps[1] * 1000:7.1f}{gaps[2] * 1000:7.1f}"
                f"{figures.cpu_seconds_per_1000_tokens:10.2f}{figures.peak_megabytes:7.0f}"
            )
    return "\n".join(lines)


def capacity(clients: int, slots: int | None) -> dict[str, str]:
    """Settings for so many clients: what has no slot waits, and none is refused."""
    return {
        "ENGINE_SLOTS": str(slots or min(clients, Settings().engine_slots)),
        "SERVER_QUEUE_LIMIT": str(max(clients, Settings().server_queue_limit)),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    add_targets(parser)
    parser.add_argument("--clients", default="1,4,16,32", help="numbers of concurrent streams")
    parser.add_argument("--workloads", default="short", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--slots", type=int, help="unset: one for each client, up to the default number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, help="requests of each client in a run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--without-own", action="store_true", help="measure the others only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = ()) -> None:
    options = parse(arguments or sys.argv[1:])
    clients = [int(number) for number in options.clients.split(",")]
    workloads = [WORKLOADS[name] for name in options.workloads.split(",")]
    model, words = default_words()
    servers = targets(options)
    results: dict[tuple[str, int], dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    summary: dict[str, Any] = {}
    with ExitStack() as stack:
        if not options.without_own:
            context = max(workload.context for workload in workloads) + TOKENS + 64
            settings = {
                "MODEL": str(model),
                "ENGINE_CONTEXT_LENGTH": str(context),
                **capacity(max(clients), options.slots),
            }
            url, seconds = stack.enter_context(serve(PORT, settings))
            summary["ready_seconds"] = round(seconds, 2)
            print(f"ready after {seconds:.1f} s", flush=True)
            servers.insert(0, Target("basaran_ops", url, "default"))
        for target in servers:
            run(target, words.prompts(workloads[0], -1), clients=1, waves=1, tokens=8)
        for number in range(options.rounds):
            for workload in workloads:
                for count in clients:
                    for target in servers:
                        figures = measure(target, words, workload, count, number, options.waves)
                        results[workload.name, count][target.name].append(figures)
                        print(
                            f"{workload.name} {count} {target.name}: {figures.tokens_per_second:.1f} tok/s",
                            flush=True,
                        )
    print(table(results, "basaran_ops"))
    if options.json:
        summary["runs"] = [
            {"workload": workload, "clients": count, "server": name, **asdict(figures)}
            for (workload, count), measured in results.items()
            for name, runs in measured.items()
            for figures in runs
        ]
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Throughput and latency under closed-loop load, of this server and of others, side by side.

`python -m benchmarks.compare` serves the default model and prints a table; `--against NAME=URL` measures any
OpenAI-compatible server the same way, in alternating runs, and adds ratios. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from basaran_ops.checkpoint.default_model import default_model
from basaran_ops.checkpoint.resolve import cache_directory
from basaran_ops.settings import Settings

from .load import IGNORE_EOS, Load, Target, run
from .processes import Usage, serve
from .workloads import WORKLOADS, Words, Workload

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
        *(_quantile(first, share) for share in (0.5, 0.95, 0.99)),
        *(_quantile(gaps, share) for share in (0.5, 0.95, 0.99)),
        usage.cpu_seconds / tokens * 1000,
        usage.peak_bytes / 1e6,
    )


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(runs: Iterable[Figures]) -> Figures:
    """Of each figure by itself."""
    columns = zip(*(asdict(figures).values() for figures in runs), strict=True)
    return Figures(*(statistics.median(column) for column in columns))


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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--against", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--against-model", default="default", help="the model's name at the other servers")
    parser.add_argument(
        "--fields",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help='fields that make a server go on past the end of a text, if not {"ignore_eos": true}',
    )
    parser.add_argument("--clients", default="1,4,16,32", help="numbers of concurrent streams")
    parser.add_argument("--workloads", default="short", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, help="requests of each client in a run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--without-own", action="store_true", help="measure the others only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = ()) -> None:
    options = parse(arguments or sys.argv[1:])
    clients = [int(number) for number in options.clients.split(",")]
    workloads = [WORKLOADS[name] for name in options.workloads.split(",")]
    model = default_model(cache_directory(Settings()), False, print)
    words = Words(Tokenizer.from_file(str(model / "tokenizer.json")))
    fields = {name: json.loads(text) for name, _, text in (entry.partition("=") for entry in options.fields)}
    targets = [
        Target(name, url.rstrip("/"), options.against_model, fields=fields.get(name, IGNORE_EOS))
        for name, _, url in (entry.partition("=") for entry in options.against)
    ]
    results: dict[tuple[str, int], dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    summary: dict[str, Any] = {}
    with ExitStack() as stack:
        if not options.without_own:
            context = max(workload.context for workload in workloads) + TOKENS + 64
            url, seconds = stack.enter_context(
                serve(
                    PORT,
                    {
                        "MODEL": str(model),
                        "ENGINE_SLOTS": str(max(clients)),
                        "ENGINE_CONTEXT_LENGTH": str(context),
                    },
                )
            )
            summary["ready_seconds"] = round(seconds, 2)
            print(f"ready after {seconds:.1f} s", flush=True)
            targets.insert(0, Target("basaran_ops", url, "default"))
        for target in targets:
            run(target, words.prompts(workloads[0], -1), clients=1, waves=1, tokens=8)
        for number in range(options.rounds):
            for workload in workloads:
                for count in clients:
                    for target in targets:
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
            for (workload, count), servers in results.items()
            for name, runs in servers.items()
            for figures in runs
        ]
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

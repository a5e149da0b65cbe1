"""Where the time from exec to ready goes.

`python -m benchmarks.startup` starts the server with the default model, without a recording of its forward
and with the one that the start before has kept, and prints the seconds of each part, as the log tells them.
Medians of the rounds. `--imports` adds what the engine's imports take alone, by package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .processes import is_ready
from .workloads import default_words

PORT = 8971
PARTS = {
    "arbiter, listening": "Listening at",
    "HTTP worker, engine": "importing torch",
    "imports of the engine": "loading ",
    "weights": "trying how ",
    "trying how it runs": "recording and packing",
    "recording and packing": "its forward is ",
    "collecting, tokenizer": "is ready",
}
"""Each part, and the words in the log that end it."""
TOTAL = "exec to ready"
IMPORTS = "from basaran_ops.checkpoint import resolve; from basaran_ops.engine.loader import load_engine"


def split(lines: Iterable[tuple[float, str]]) -> dict[str, float]:
    """Seconds of each part, from lines of the log and when they came, in seconds from the start.

    Reads up to the last one it looks for. Raises RuntimeError if they end before that.
    """
    parts: dict[str, float] = {}
    waiting, before = list(PARTS.items()), 0.0
    for at, line in lines:
        if waiting[0][1] in line:
            parts[waiting.pop(0)[0]] = at - before
            before = at
        if not waiting:
            return parts
    raise RuntimeError(f"it did not come to {waiting[0][1]!r}")


def measure(cache: Path, model: Path) -> dict[str, float]:
    """Seconds of each part of one start. Raises RuntimeError if the server ends before it is ready."""
    own = {
        "HOST": "127.0.0.1",
        "PORT": str(PORT),
        "MANAGEMENT_PORT": str(PORT + 1),
        "MODEL": str(model),
        "MODEL_CACHE_DIR": str(cache),
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "basaran_ops"],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        parts = split((time.perf_counter() - started, _event(line)) for line in process.stdout)
        while not is_ready(PORT + 1):
            time.sleep(0.01)
        parts[TOTAL] = time.perf_counter() - started
    finally:
        process.terminate()
        process.communicate()
    return parts


def _event(line: str) -> str:
    return str(json.loads(line).get("event", "")) if line.startswith("{") else line


def import_seconds(trace: str) -> Counter[str]:
    """Seconds that each package's own modules take, from what `python -X importtime` writes."""
    seconds: Counter[str] = Counter()
    for own, package in re.findall(r"^import time: +(\d+) \| +\d+ \| +([^.\s]+)", trace, re.MULTILINE):
        seconds[package] += int(own) / 1e6
    return seconds


def table(starts: Mapping[str, Mapping[str, float]]) -> str:
    """Parts in rows, kinds of start in columns."""
    head = f"{'seconds':24}" + "".join(f"{name:>14}" for name in starts)
    rows = (
        f"{part:24}" + "".join(f"{parts[part]:14.2f}" for parts in starts.values())
        for part in next(iter(starts.values()))
    )
    return "\n".join([head, *rows])


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments or sys.argv[1:])
    model, _ = default_words()
    starts: dict[str, list[dict[str, float]]] = {"first start": [], "next start": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as directory:
            for rounds in starts.values():
                rounds.append(measure(Path(directory), model))
    results = {
        name: {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
        for name, rounds in starts.items()
    }
    print(table(results))
    if options.imports:
        command = [sys.executable, "-X", "importtime", "-c", IMPORTS]
        trace = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        seconds = import_seconds(trace)
        results["imports"] = dict(seconds.most_common(12))
        listed = "  ".join(f"{name} {own:.2f}" for name, own in results["imports"].items())
        print(f"imports of the engine, {seconds.total():.2f} when traced: {listed}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

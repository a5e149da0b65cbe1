"""What a prompt gains by beginning as another one did.

`python -m benchmarks.prefix` serves the default model, with its prefix cache and without, and prints the time
to first token of the first and of the second prompt with the same 1,000 tokens at the start, and of four that
come at once: after these, and with a prefix that nobody has sent before. Medians over the prefixes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from .figures import median
from .load import Target, connect, follow
from .processes import serve
from .workloads import Words, default_words

PORT = 8971
SHARED, OWN = 1000, 20
"""Tokens of a prompt."""
TOGETHER = 4


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds to first token, of one prefix."""

    first: float
    second: float
    share: float
    """The second's, of the first's."""
    together: float
    """The last's of those that come at once."""
    new_together: float
    """The same, where their prefix is new."""


async def measure(target: Target, words: Words, seed: int) -> Figures:
    """All prompts of two prefixes that nobody has sent before."""
    random = Random(f"prefix {seed}")
    prefix, other = words.text(random, SHARED), words.text(random, SHARED)

    async with connect(target) as session:

        async def first_token(prefix: str) -> float:
            prompt = f"{prefix} {words.text(random, OWN)}"
            return (await follow(session, target, prompt, 2)).events[0]

        async def together(prefix: str) -> float:
            return max(await asyncio.gather(*(first_token(prefix) for _ in range(TOGETHER))))

        first, second = await first_token(prefix), await first_token(prefix)
        return Figures(first, second, second / first, await together(prefix), await together(other))


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix", description=__doc__)
    parser.add_argument("--prefixes", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments or sys.argv[1:])
    model, words = default_words()
    results = {}
    print(
        f"{'TTFT ms, prefix cache':21}{'first':>8}{'second':>8}{'share':>7}"
        f"{f'last of {TOGETHER} at once':>19}{'of a new prefix':>17}"
    )
    for cache in ("true", "false"):
        settings = {
            "MODEL": str(model),
            "ENGINE_CONTEXT_LENGTH": str(SHARED + 2 * OWN + 64),
            "ENGINE_PREFIX_CACHE": cache,
        }
        with serve(PORT, settings) as (url, _):
            target = Target("basaran_ops", url, "default")
            asyncio.run(measure(target, words, -1))
            rounds = [asyncio.run(measure(target, words, seed)) for seed in range(options.prefixes)]
        results[cache] = [asdict(one) for one in rounds]
        figures = median(rounds)
        print(
            f"{cache:21}{figures.first * 1000:8.0f}{figures.second * 1000:8.0f}{figures.share:7.0%}"
            f"{figures.together * 1000:19.0f}{figures.new_together * 1000:17.0f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How the cost of what a request asks for grows with how much of it there is.

`python -m benchmarks.growth` measures each axis on the default model, in this process and, for whole
requests, through a server; fits a + b x by least squares, for the length of a prompt, whose attention is
quadratic, with c x^2; and prints the exponent of the power law through the larger half. Exits with 1 where
that is above LIMIT or, for a prompt, where more grows with the square than attention takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
import torch

from basaran_ops.checkpoint.resolve import resolve
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.loader import load_engine
from basaran_ops.engine.sampler import Sampler
from basaran_ops.engine.sequence import Sequence as EngineSequence
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings
from basaran_ops.text.chat_template import ChatTemplate
from basaran_ops.text.detokenizer import Detokenizer
from basaran_ops.text.stop_checker import StopChecker
from basaran_ops.text.tokenizer import Tokenizer

from .figures import Growth, growth
from .processes import serve
from .step import Stopwatch

LIMIT = 1.15
"""Of an exponent: 1 and what timings of few milliseconds scatter by."""
SLACK = 1.25
"""How much longer the first use of a slot may take than another one."""
PORT = 8971
CONTEXT = 4200
SLOTS = 32
PROMPT = 200
"""Tokens, where something else grows."""
DECODED = 20
"""Tokens that a sequence decodes for one measurement."""

_seeds = count(1)


@dataclass(frozen=True, slots=True)
class Axis:
    """Something that there can be more of."""

    name: str
    sizes: tuple[int, ...]
    cost: Callable[[int], float]
    """Seconds for a size."""
    unit: str
    """What the cost is."""
    square: bool = False
    repeats: int = 5
    limit: float = LIMIT
    """Of its exponent."""


def prefill_seconds(engine: Engine, tokens: int) -> float:
    """To read a prompt that nobody has sent before, alone."""
    _add(engine, _prompt(tokens), 1)
    started = time.perf_counter()
    _drain(engine)
    return time.perf_counter() - started


def step_seconds(engine: Engine, streams: int, tokens: int) -> float:
    """Of a step in which so many sequences decode, each with so many tokens behind it."""
    # The same ones at each call, and longer ones begin alike: what was read once stays in the slots.
    prompts = [_prompt(tokens, seed=stream) for stream in range(streams)]
    for output in (1, DECODED):
        _drain(engine)
        for prompt in prompts:
            _add(engine, prompt, output)
    times = []
    while engine.has_work:
        started = time.perf_counter()
        engine.step()
        if engine.stats.batch_tokens == streams:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def choices_seconds(engine: Engine, n: int) -> float:
    """For n choices of one prompt, sampled; they share its beginning."""
    prompt = _prompt(PROMPT)
    params = SamplingParams(max_tokens=DECODED, ignore_eos=True)
    for seed in range(n):
        engine.add(next(_seeds), prompt, params, seed)
    started = time.perf_counter()
    _drain(engine)
    return time.perf_counter() - started


def sampler_seconds(params: SamplingParams, spread: float, vocabulary: int) -> float:
    """To draw a token for each of 8 sequences. A `spread` of 1 makes it flat, as no model's are."""
    logits = spread * torch.randn(8, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    sequences = [EngineSequence(number, (1, 2, 3), params, number) for number in range(8)]
    sampler = Sampler()
    started = time.perf_counter()
    for _ in range(10):
        sampler.sample(logits, sequences)
    return (time.perf_counter() - started) / 10


def template_seconds(template: ChatTemplate, messages: int) -> float:
    """To turn a conversation of so many messages into tokens."""
    started = time.perf_counter()
    template.encode(
        conversation(messages), add_generation_prompt=True, continue_final_message=False, variables={}
    )
    return time.perf_counter() - started


def conversation(messages: int) -> list[dict[str, str]]:
    """Of two speakers in turn; a longer one begins with a shorter one."""
    roles = ("user", "assistant")
    return [
        {"role": roles[number % 2], "content": f"Message {number} of a long talk."}
        for number in range(messages)
    ]


def text_seconds(tokenizer: Tokenizer, stop: Sequence[str], tokens: int) -> float:
    """To turn so many tokens into text and look for stop strings, one after the other."""
    ids = _prompt(tokens, seed=tokens)
    detokenizer, checker = Detokenizer(tokenizer.decode, ids[:5]), StopChecker(stop)
    started = time.perf_counter()
    for token in ids:
        checker.push(detokenizer.push(token))
    return time.perf_counter() - started


def request_seconds(client: httpx.Client, path: str, fields: Mapping[str, Any]) -> float:
    """Of one request that is not streamed."""
    started = time.perf_counter()
    client.post(path, json={"ignore_eos": True, **fields}).raise_for_status()
    return time.perf_counter() - started


def _prompt(tokens: int, seed: int | None = None) -> tuple[int, ...]:
    """Random ids; others each time, unless there is a seed."""
    random = Random(f"new {next(_seeds)}" if seed is None else seed)
    return tuple(random.randrange(1000, 40000) for _ in range(tokens))


def _add(engine: Engine, prompt: tuple[int, ...], output: int) -> None:
    params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
    engine.add(next(_seeds), prompt, params, None)


def _drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


STREAMS = (1, 2, 4, 8, 16, 24, 32)
LENGTHS = (125, 250, 500, 1000, 2000, 4000)
CONTEXTS = (200, 500, 1000, 2000, 3000, 4000)
CHOICES = (1, 2, 4, 8, 12, 16)
VOCABULARIES = (8_000, 16_000, 32_000, 64_000, 128_000, 256_000)
OUTPUTS = (500, 1000, 2000, 4000, 8000)
STOPS = (1, 2, 4, 8, 16)
MESSAGES = (8, 16, 32, 64, 128, 256)
REQUESTS = ("n, a request", "messages, a request")
"""The axes that need a server."""


def engine_axes(engine: Engine) -> Iterator[Axis]:
    yield Axis("streams", STREAMS, lambda n: step_seconds(engine, n, PROMPT), "ms a step")
    yield Axis(
        "prompt tokens", LENGTHS, partial(prefill_seconds, engine), "ms to read", square=True, repeats=3
    )
    yield Axis("context", CONTEXTS, lambda n: step_seconds(engine, 4, n), "ms a step of 4", repeats=3)
    yield Axis("n", CHOICES, partial(choices_seconds, engine), f"ms for {DECODED} tokens each")


def text_axes(tokenizer: Tokenizer) -> Iterator[Axis]:
    kinds = {
        "greedy": (SamplingParams(temperature=0), 1),
        "temperature": (SamplingParams(), 1),
        "top_p": (SamplingParams(top_p=0.9), 5),
        "top_p, flat": (SamplingParams(top_p=0.9), 1),
    }
    for name, (params, spread) in kinds.items():
        cost = partial(sampler_seconds, params, spread)
        # What is flat is sorted, and outgrows the caches.
        limit = LIMIT + 0.15 if "flat" in name else LIMIT
        yield Axis(f"vocabulary, {name}", VOCABULARIES, cost, "ms for 8 rows", limit=limit)
    yield Axis("output tokens", OUTPUTS, partial(text_seconds, tokenizer, ()), "ms to text")
    words = [f" stop {number}" for number in range(max(STOPS))]
    yield Axis(
        "stop strings", STOPS, lambda n: text_seconds(tokenizer, words[:n], 1000), "ms to text, 1,000 tokens"
    )
    template = ChatTemplate(tokenizer)
    yield Axis("messages", MESSAGES, partial(template_seconds, template), "ms to tokens")


def request_axes(client: httpx.Client) -> Iterator[Axis]:
    def choices(n: int) -> float:
        fields = {"prompt": _prompt(PROMPT), "n": n, "max_tokens": DECODED}
        return request_seconds(client, "/v1/completions", fields)

    def chat(messages: int) -> float:
        # From the second time on its prompt is in a slot: what is left is the server's part.
        fields = {"messages": conversation(messages), "max_tokens": 1, "temperature": 0}
        return request_seconds(client, "/v1/chat/completions", fields)

    n, messages = REQUESTS
    yield Axis(n, CHOICES, choices, f"ms for {DECODED} tokens each")
    yield Axis(messages, MESSAGES, chat, "ms")


def measure(axis: Axis) -> tuple[list[float], Growth]:
    """Seconds for each size, the least of several, and how they grow."""
    axis.cost(axis.sizes[0])
    costs = [min(axis.cost(size) for _ in range(axis.repeats)) for size in axis.sizes]
    return costs, growth(axis.sizes, costs, square=axis.square)


def report(axis: Axis, costs: Sequence[float], grown: Growth) -> str:
    names = ("", " x", " x^2")
    fit = " + ".join(f"{c * 1000:.3g}{name}" for c, name in zip(grown.coefficients, names, strict=False))
    points = "  ".join(f"{size}: {cost * 1000:.3g}" for size, cost in zip(axis.sizes, costs, strict=True))
    return (
        f"{axis.name}, {axis.unit}: {points}\n"
        f"    {fit}; R2 {grown.r_squared:.4f}, within {grown.error:.0%}; exponent {grown.exponent:.2f}"
    )


def attention_share(engine: Engine, tokens: int) -> float:
    """Of the time to read a prompt. The engine is watched from then on."""
    watch = Stopwatch(engine)
    prefill_seconds(engine, tokens)
    before = watch.read()
    seconds = prefill_seconds(engine, tokens)
    return (watch.read() - before)["attention"] / seconds


def square_share(size: int, coefficients: Sequence[float]) -> float:
    """Of the cost of this size, what grows with its square."""
    return coefficients[2] * size**2 / sum(c * size**power for power, c in enumerate(coefficients))


def slot_seconds(engine: Engine) -> tuple[float, float]:
    """To read a prompt in a slot that nobody has used, and in one that somebody has. Uses all slots."""
    new, used = ([prefill_seconds(engine, PROMPT) for _ in range(SLOTS)] for _ in range(2))
    return statistics.median(new), statistics.median(used)


class Findings:
    """What was measured, of the axes whose names begin as wished."""

    def __init__(self, wished: tuple[str, ...]) -> None:
        self.results: dict[str, Any] = {}
        self.steep: list[str] = []
        self._wished = wished

    def wants(self, name: str) -> bool:
        return name.startswith(self._wished)

    def take(self, axes: Iterable[Axis]) -> None:
        for axis in axes:
            if not self.wants(axis.name):
                continue
            costs, grown = measure(axis)
            print(report(axis, costs, grown), flush=True)
            self.results[axis.name] = {"sizes": axis.sizes, "seconds": costs, **asdict(grown)}
            if grown.exponent > axis.limit and not axis.square:
                self.steep.append(axis.name)

    def compare_slots(self, engine: Engine) -> None:
        """Whether the first use of a slot costs more than another. From then on none is new."""
        new, used = slot_seconds(engine)
        print(
            f"slots, ms to read {PROMPT} tokens: {new * 1000:.3g} if new, {used * 1000:.3g} if used",
            flush=True,
        )
        self.results["slots"] = {"new": new, "used": used}
        if new > used * SLACK:
            self.steep.append("slots, in their first use")

    def explain_square(self, name: str, engine: Engine) -> None:
        """Hold what grows with a prompt's square against attention's share of its longest size."""
        result = self.results[name]
        size = result["sizes"][-1]
        attention = result["attention_share"] = attention_share(engine, size)
        square = square_share(size, result["coefficients"])
        print(
            f"{name}, {size}: {square:.0%} grows with the square, attention takes {attention:.0%}", flush=True
        )
        if square > attention + LIMIT - 1:
            self.steep.append(name)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", default="", help="axes whose names begin so, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments or sys.argv[1:])
    findings = Findings(tuple(options.only.split(",")))
    settings = Settings(
        engine_slots=SLOTS,
        engine_context_length=CONTEXT,
        engine_speculate=False,
        engine_prefill_stretch=1000,  # all prompts at once: the steps after them have all the rows
    )
    checkpoint = resolve(settings, print)
    engine, info = load_engine(checkpoint, settings)
    findings.compare_slots(engine)
    findings.take(engine_axes(engine))
    findings.take(text_axes(Tokenizer.load(info.tokenizer_path)))
    # Last of what needs it: the engine is slower for being watched.
    if "prompt tokens" in findings.results:
        findings.explain_square("prompt tokens", engine)
    del engine
    if any(findings.wants(name) for name in REQUESTS):
        environ = {
            "MODEL": str(checkpoint.path),
            "ENGINE_CONTEXT_LENGTH": str(CONTEXT),
            "ENGINE_SLOTS": str(SLOTS),
        }
        with serve(PORT, environ) as (url, _), httpx.Client(base_url=url, timeout=600) as client:
            # Prompts rather than choices, of which a request may have fewer than there are slots.
            fields = {"prompt": ["All slots"] * SLOTS, "max_tokens": 1}
            request_seconds(client, "/v1/completions", fields)
            findings.take(request_axes(client))
    if options.json:
        options.json.write_text(json.dumps(findings.results, indent=2) + "\n")
    if findings.steep:
        sys.exit(f"grows faster than it should: {', '.join(findings.steep)}")


if __name__ == "__main__":
    main()

"""Where a step's time goes, and how far it is from what the machine allows.

`python -m benchmarks.step` loads the default model and prints, for each number of streams, the median step,
the share of its parts, and the limit: the time to read the weights once or to multiply by them, whichever is
longer, and to read keys and values. Then the same for prompts that are read at once, whose limit is the time
to multiply. Bandwidth and matmul speed are measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from basaran_ops.checkpoint.resolve import resolve
from basaran_ops.engine.attention import BoundAttention
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.forward import PanelLinear, Program
from basaran_ops.engine.linear import PackedLinear
from basaran_ops.engine.loader import load_engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings

STEPS = 40
PROMPT = 200
PROMPTS = 8
READS = 7


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine does at best, as measured."""

    bytes_per_second: float
    products_per_second: float
    """Floating-point operations of a large matrix product in the model's type."""


def measure_limits(dtype: torch.dtype) -> Limits:
    numbers = torch.ones(2**28 // 4)
    left, right = torch.ones(1024, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    reading = _best(numbers.sum)
    multiplying = _best(lambda: left @ right)
    return Limits(numbers.numel() * 4 / reading, 2 * 1024 * 2048 * 2048 / multiplying)


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(15):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


class Stopwatch:
    """Seconds spent in each part of a step, by wrapping its operations."""

    def __init__(self, engine: Engine) -> None:
        self.seconds: Counter[str] = Counter()
        runner, sampler = engine._runner, engine._sampler
        assert isinstance(runner, PackedRunner)
        forward = runner._compiled
        if forward is None:
            raise SystemExit("the model's forward is not recorded")
        self._programs = forward.programs
        for program in self._programs:
            program.profile = array("q", [0] * len(PARTS))
        forward._steps = [
            step
            if isinstance(step.operation, Program)
            else step._replace(operation=self._timed(_part(step.operation), step.operation))
            for step in forward._steps
        ]
        sampler.sample = self._timed("sampler", sampler.sample)  # type: ignore[method-assign]

    def read(self) -> Counter[str]:
        """Seconds by part up to now."""
        seconds = self.seconds.copy()
        for program in self._programs:
            assert program.profile is not None
            for part, nanoseconds in zip(PARTS, program.profile, strict=True):
                seconds[part] += nanoseconds / 1e9
        return seconds

    def _timed(self, part: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self._run, part, operation)

    def _run(self, part: str, operation: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        result = operation(*args)
        self.seconds[part] += time.perf_counter() - started
        return result


PARTS = ("small", "linear", "small", "attention", "small", "small", "small", "small", "linear")
"""Of each kind of operation of a compiled run."""


def _part(operation: Callable[..., Any]) -> str:
    if isinstance(operation, (PackedLinear, PanelLinear)):
        return "linear"
    return "attention" if isinstance(operation, BoundAttention) else "small"


def decode_steps(
    engine: Engine, streams: int, watch: Stopwatch | None = None
) -> tuple[list[float], Counter[str]]:
    """Seconds of each step in which all streams decode, and of the parts of all of these together."""
    _add(engine, streams, STEPS + 2)
    times = []
    parts: Counter[str] = Counter()
    while engine.has_work:
        before = watch.read() if watch else parts
        started = time.perf_counter()
        engine.step()
        if engine.stats.batch_tokens == streams:
            times.append(time.perf_counter() - started)
            parts += watch.read() - before if watch else Counter()
    return times, parts


def prompt_reads(engine: Engine, watch: Stopwatch | None = None) -> tuple[list[float], Counter[str]]:
    """Seconds of each time that PROMPTS prompts are read, and of the parts of all of these together."""
    times = []
    parts: Counter[str] = Counter()
    for _ in range(READS):
        _add(engine, PROMPTS, 1)
        before = watch.read() if watch else parts
        started = time.perf_counter()
        while engine.has_work:
            engine.step()
        times.append(time.perf_counter() - started)
        parts += watch.read() - before if watch else Counter()
    return times, parts


def _add(engine: Engine, count: int, max_tokens: int) -> None:
    random = Random(count)
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    for number in range(count):
        prompt = tuple(random.randrange(1000, 40000) for _ in range(PROMPT))
        engine.add(number, prompt, params, None)


def weight_elements(runner: PackedRunner) -> int:
    """Numbers in linear layers, which every step reads."""
    forward = runner._compiled
    assert forward is not None
    return sum(layer.elements for layer in forward.linears)


def step_limit(streams: int, limits: Limits, runner: PackedRunner, elements: int) -> float:
    """Seconds that a decode step takes at least; `elements` are the numbers in the weights."""
    cache = runner._attention.cache
    assert cache is not None
    itemsize = next(iter(cache.keys.values())).itemsize
    token_bytes = sum(
        tensor.shape[1] * tensor.shape[3] * itemsize
        for tensors in (cache.keys, cache.values)
        for tensor in tensors.values()
    )
    reading = elements * itemsize / limits.bytes_per_second
    multiplying = 2 * elements * streams / limits.products_per_second
    return max(reading, multiplying) + streams * (PROMPT + STEPS / 2) * token_bytes / limits.bytes_per_second


def read_limit(limits: Limits, runner: PackedRunner, elements: int) -> float:
    """Seconds that it takes at least to read PROMPTS prompts, of which only the last tokens get logits."""
    forward = runner._compiled
    assert forward is not None
    head = forward.linears[-1].elements
    products = ((elements - head) * PROMPT + head) * PROMPTS
    return 2 * products / limits.products_per_second


def report(what: str, plain: list[float], watched: list[float], parts: Counter[str], limit: float) -> str:
    """One line: how long it takes, and the shares of its parts where these were watched."""
    median = statistics.median(plain)
    shares = {name: seconds / sum(watched) for name, seconds in parts.items()}
    told = "  ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return (
        f"{what}: {median * 1000:6.1f} ms, limit {limit * 1000:5.1f} ms, x{median / limit:.2f}; "
        f"{told}  else {1 - sum(shares.values()):.0%}"
    )


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--streams", default="1,4,16,32")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(arguments or sys.argv[1:])
    streams = [int(number) for number in options.streams.split(",")]
    settings = Settings(
        engine_slots=max(streams),
        engine_context_length=512,
        engine_prefix_cache=False,
        engine_prefill_stretch=1000,  # all prompts at once: the steps after them have all the rows
        model_dtype=options.dtype,
    )
    engine, info = load_engine(resolve(settings, print), settings)
    limits = measure_limits(getattr(torch, info.dtype))
    print(
        f"{info.dtype}, {torch.get_num_threads()} threads: {limits.bytes_per_second / 1e9:.0f} GB/s, "
        f"{limits.products_per_second / 1e9:.0f} GFLOP/s"
    )
    runner = engine._runner
    assert isinstance(runner, PackedRunner)
    elements = weight_elements(runner)
    plain = {count: decode_steps(engine, count)[0] for count in streams}
    reads = prompt_reads(engine)[0]
    watch = Stopwatch(engine)
    for count in streams:
        limit = step_limit(count, limits, runner, elements)
        print(
            report(f"{count:4} streams", plain[count], *decode_steps(engine, count, watch), limit), flush=True
        )
    limit = read_limit(limits, runner, elements)
    print(report(f"{PROMPTS} prompts of {PROMPT}", reads, *prompt_reads(engine, watch), limit))


if __name__ == "__main__":
    main()

"""Where a decode step's time goes, and how far it is from what the machine allows.

`python -m benchmarks.step` loads the default model and prints, for each number of streams, the median step,
the share of its parts, and the limit: the time to read the weights once or to multiply by them, whichever is
longer, and to read keys and values. Bandwidth and matmul speed are measured in the same run.
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
    random = Random(streams)
    params = SamplingParams(max_tokens=STEPS + 2, temperature=0, ignore_eos=True)
    for number in range(streams):
        prompt = tuple(random.randrange(1000, 40000) for _ in range(PROMPT))
        engine.add(number, prompt, params, None)
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


def weight_elements(runner: PackedRunner) -> int:
    """Numbers in linear layers, which every step reads."""
    forward = runner._compiled
    assert forward is not None
    return sum(layer.elements for layer in forward.linears)


def report(
    streams: int,
    times: list[float],
    shares: dict[str, float],
    limits: Limits,
    runner: PackedRunner,
    elements: int,
) -> str:
    """One line; `shares` are of steps that were watched, `elements` the numbers in the weights."""
    step = statistics.median(times)
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
    limit = max(reading, multiplying) + streams * (PROMPT + STEPS / 2) * token_bytes / limits.bytes_per_second
    parts = "  ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return (
        f"{streams:4} streams: {step * 1000:6.1f} ms, limit {limit * 1000:5.1f} ms, x{step / limit:.2f}; "
        f"{parts}  else {1 - sum(shares.values()):.0%}"
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
    watch = Stopwatch(engine)
    for count in streams:
        times, parts = decode_steps(engine, count, watch)
        shares = {name: seconds / sum(times) for name, seconds in parts.items()}
        print(report(count, plain[count], shares, limits, runner, elements), flush=True)


if __name__ == "__main__":
    main()

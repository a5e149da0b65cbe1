"""Load a tiny model, ask it, close it, again and again: what is left behind. `make cycles` does 1,000."""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import logging

from basaran_ops import load_model
from basaran_ops.engine.kv_cache import SlotKVCache

from ..tiny_models import save_tiny


@dataclass(frozen=True)
class Left:
    """What the process holds after so many cycles."""

    cycles: int
    seconds: float
    """Of one cycle, on average so far."""
    resident: int
    """Bytes."""
    threads: int
    descriptors: int
    objects: int
    models: int
    """Models, caches and attention functions that are still there."""

    def __str__(self) -> str:
        return (
            f"{self.cycles:5} cycles of {self.seconds * 1000:.0f} ms: {self.resident / 2**20:.1f} MiB, "
            f"{self.threads} threads, {self.descriptors} descriptors, {self.objects} objects, "
            f"{self.models} models"
        )


def cycle(path: Path, **settings: object) -> None:
    with load_model(path, model_dtype="float32", engine_slots=4, engine_threads=1, **settings) as model:
        assert [piece["finish_reason"] for piece in model("the cat", max_tokens=4)][-1] == "length"


def cycles(path: Path, count: int, told: int, **settings: object) -> Iterator[Left]:
    """Do so many and tell after every `told`; one goes before, after which libraries keep what they keep."""
    logging.disable_progress_bar()
    cycle(path, **settings)
    yield left(0, 0)
    started = time.perf_counter()
    for number in range(1, count + 1):
        cycle(path, **settings)
        if number % told == 0:
            yield left(number, (time.perf_counter() - started) / number)


def left(number: int, seconds: float) -> Left:
    gc.collect()
    process = psutil.Process()
    objects = gc.get_objects()
    # Not isinstance, which asks an object for its class: deprecated ones of torch answer with a warning.
    models = sum(issubclass(type(thing), PreTrainedModel | SlotKVCache) for thing in objects)
    ours = [name for name in AttentionInterface().valid_keys() if name.startswith("basaran")]
    return Left(
        number,
        seconds,
        process.memory_info().rss,
        threading.active_count(),
        process.num_fds(),
        len(objects),
        models + len(ours),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    wished, settings = int(sys.argv[1]), dict(setting.split("=") for setting in sys.argv[2:])
    with tempfile.TemporaryDirectory() as directory:
        path = save_tiny(Path(directory) / "model", eos=None)
        for told in cycles(path, wished, max(1, wished // 10), **settings):
            print(told, flush=True)

"""The step as a whole: what it tells, and what it does where the device has no memory left."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from basaran_ops.engine.engine import Engine
from basaran_ops.engine.memory import MemoryUse, is_out_of_memory
from basaran_ops.outputs import SequenceOutput
from basaran_ops.sampling_params import SamplingParams

from ..architectures import tiny_architecture
from ..tiny_models import generate
from .engines import engine_for


class Full:
    """A runner's run() that fails at some of its calls as a device without memory does."""

    def __init__(self, engine: Engine, error: Exception, *calls: int) -> None:
        self.run = engine._runner.run
        self.error = error
        self.calls = calls
        self.count = 0
        engine._runner.run = self  # type: ignore[method-assign, assignment]

    def __call__(self, batch: object) -> torch.Tensor:
        self.count += 1
        if self.count in self.calls:
            raise self.error
        return self.run(batch)  # type: ignore[arg-type]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
]


def drain(engine: Engine) -> tuple[dict[int, list[int]], dict[int, SequenceOutput]]:
    tokens: dict[int, list[int]] = {}
    last: dict[int, SequenceOutput] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.sequence_id not in last, "an output after the last"
            tokens.setdefault(output.sequence_id, []).extend(output.token_ids)
            if output.finish_reason is not None:
                last[output.sequence_id] = output
    engine.check_idle()
    return tokens, last


def add(engine: Engine, model: PreTrainedModel, count: int) -> None:
    for number in range(count):
        engine.add(number, (5, 6, 7 + number), SamplingParams(max_tokens=6, temperature=0), None)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_without_memory_the_last_to_ask_fails_and_the_others_go_on(error: Exception) -> None:
    model, free = tiny_architecture("llama"), tiny_architecture("llama")
    engine = engine_for(model)
    add(engine, model, 4)
    # The prompts' step, and later one in which all that are left decode.
    Full(engine, error, 1, 4)
    tokens, last = drain(engine)
    assert {number: output.finish_reason for number, output in last.items()} == {
        0: "length",
        1: "length",
        2: "error",
        3: "error",
    }
    assert last[3].error == "the device has no memory left for this request"
    assert tokens[0] == generate(free, (5, 6, 7), 6)
    assert tokens[1] == generate(free, (5, 6, 8), 6)
    assert engine.stats.out_of_memory == 2


def test_a_cohort_without_memory_fails_as_one_and_the_next_goes_on() -> None:
    model = tiny_architecture("bloom")
    engine = engine_for(model)
    add(engine, model, 3)
    Full(engine, OUT_OF_MEMORY[0], 2)
    engine.step()
    engine.add(9, (5, 6), SamplingParams(max_tokens=3, temperature=0), None)
    _, last = drain(engine)
    assert {number: output.finish_reason for number, output in last.items()} == {
        0: "error",
        1: "error",
        2: "error",
        9: "length",
    }


def test_other_failures_are_the_engines_own() -> None:
    engine = engine_for(tiny_architecture("llama"))
    engine.add(0, (5, 6), SamplingParams(max_tokens=3), None)
    Full(engine, RuntimeError("an illegal memory access was encountered"), 1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()
    assert not is_out_of_memory(RuntimeError("an illegal memory access was encountered"))


def test_the_first_output_tells_when_its_first_step_began() -> None:
    engine = engine_for(tiny_architecture("llama"), token_budget=24)
    engine.add(0, tuple(range(2, 60)), SamplingParams(max_tokens=3, temperature=0), None)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    first, *others = outputs
    assert first.scheduled_at is not None
    assert all(output.scheduled_at is None for output in others)


def test_what_is_told_of_the_engine_is_true_when_nothing_runs_any_more() -> None:
    engine = engine_for(tiny_architecture("llama"))
    engine._memory = lambda: MemoryUse(3, 10)
    engine.add(0, (5, 6), SamplingParams(max_tokens=50), None)
    engine.step()
    assert (engine.stats.running, engine.stats.cached_tokens) == (1, 2)
    engine.cancel(0)
    assert (engine.stats.running, engine.stats.waiting, engine.stats.cached_tokens) == (0, 0, 0)

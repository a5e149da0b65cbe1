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


def test_without_memory_before_a_copy_nobody_reads_what_was_never_copied() -> None:
    model, free = tiny_architecture("llama"), tiny_architecture("llama")
    engine = engine_for(model, slots=4, token_budget=64)
    shared = tuple(range(2, 42))
    first = SamplingParams(max_tokens=30, temperature=0)
    engine.add(0, shared, first, None)
    engine.step()
    for number in (1, 2):
        engine.add(number, (*shared, 50 + number), SamplingParams(max_tokens=6, temperature=0), None)
    Full(engine, OUT_OF_MEMORY[0], 1)
    tokens, last = drain(engine)
    assert (last[1].finish_reason, last[2].finish_reason) == ("error", "error")
    assert tokens[0] == generate(free, shared, 30)[1:]
    engine.add(3, (*shared, 51), SamplingParams(max_tokens=6, temperature=0), None)
    tokens, _ = drain(engine)
    assert tokens[3] == generate(free, (*shared, 51), 6)


def test_a_request_whose_numbers_overflow_fails_and_spoils_nobody_after_it() -> None:
    model, free = tiny_architecture("llama"), tiny_architecture("llama")
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[7] = float("inf")
    engine = engine_for(model, slots=2, token_budget=64)
    engine._runner.may_overflow = True
    for number in range(2):
        engine.add(number, (5, 7, *range(10, 70)), SamplingParams(max_tokens=5, temperature=0), None)
    _, last = drain(engine)
    assert {output.error for output in last.values()} == {"the model's numbers left the range of its type"}
    # One short, one long, in one call over both slots.
    prompts = [(5, 6, 8, 9), tuple(range(10, 70))]
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, SamplingParams(max_tokens=6, temperature=0), None)
    tokens, _ = drain(engine)
    assert [tokens[n] for n in range(2)] == [generate(free, prompt, 6) for prompt in prompts]


def test_penalties_know_only_tokens_that_can_be_generated() -> None:
    # FSMT reads one vocabulary and writes another.
    model = tiny_architecture("fsmt")
    engine = engine_for(model)
    engine.add(0, (5, 319, 7), SamplingParams(max_tokens=4, temperature=0, repetition_penalty=1.5), None)
    tokens, last = drain(engine)
    assert last[0].finish_reason == "length"
    free = tiny_architecture("fsmt")
    with torch.inference_mode():
        output = free.generate(
            torch.tensor([[5, 319, 7]]),
            max_new_tokens=4,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.5,
        )
    assert tokens[0] == output[0, 1:].tolist()

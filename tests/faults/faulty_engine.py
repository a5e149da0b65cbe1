"""An engine that misbehaves where a prompt asks for it, in an engine's process and the product's own loop.

A prompt of the token ids (MARK, fault) asks for a fault. FAULTS_ENGINE=counting puts an engine without torch
in place of the real one: it starts in no time, and its answers are known.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import Any

from basaran_ops.outputs import EngineStats, ModelInfo, SequenceOutput, TokenLogprob
from basaran_ops.pool import engine_loop
from basaran_ops.sampling_params import SamplingParams

from ..pool.fake_engine import INFO, FakeEngine

MARK = 319
"""The tiny tokenizer's last token: no text of a test has it."""

SLOW_SECONDS = 0.15


class Fault(IntEnum):
    """What the second token of a marked prompt asks for."""

    NONE = 2
    SLOW = 3
    """Each step takes long while such a sequence runs."""
    LEAK = 4
    """Its slot is not given back."""
    FORGET = 5
    """It is dropped after a token, and nobody is told."""
    STRANGERS = 6
    """Outputs of sequences that were never asked for."""
    AFTER_THE_END = 7
    """More tokens, a second end and an error, all after its end."""
    OUT_OF_VOCABULARY = 8
    NEGATIVE_TOKEN = 9
    WRONG_COUNTS = 10
    """Two tokens with the log-probabilities of one, of a prompt with less than no tokens cached."""
    COUNTERS_BACKWARD = 11
    HALF_A_MESSAGE = 12
    """Then the process ends."""
    GARBAGE = 13
    """Framed as a message is."""
    ABSURD_LENGTH = 14
    """A message of more bytes than there are, which never come."""
    ANOTHER_OBJECT = 15
    """A message of a type that no engine sends."""
    OUT_OF_MEMORY = 16
    """The device has no memory for the sequence's second step."""
    NO_MEMORY_AT_ALL = 17
    """The same, as Python says it."""


PIPE_FAULTS = (Fault.HALF_A_MESSAGE, Fault.GARBAGE, Fault.ABSURD_LENGTH, Fault.ANOTHER_OBJECT)
MEMORY_FAULTS = (Fault.OUT_OF_MEMORY, Fault.NO_MEMORY_AT_ALL)


def prompt_for(fault: Fault) -> list[int]:
    return [MARK, fault.value]


def expected_token(position: int) -> int:
    """What the counting engine generates at a position: never a special token."""
    return 2 + position % 250


class CountingEngine(FakeEngine):
    """Its tokens are of the tiny tokenizer."""

    def step(self) -> list[SequenceOutput]:
        # Sequence k's j-th is 1000 k + j there, and 250 divides 1000.
        return [
            replace(output, token_ids=tuple(expected_token(token) for token in output.token_ids))
            for output in super().step()
        ]

    def cancel(self, sequence_id: int) -> SequenceOutput | None:
        output = super().cancel(sequence_id)
        # There may be no next step, to tell of it.
        self.tell(self.stats.step)
        return output


def load_counting(progress: Callable[[str], None]) -> tuple[CountingEngine, ModelInfo]:
    progress("counting")
    info = replace(INFO, tokenizer_path=os.environ["MODEL"], context_length=100_000, vocab_size=320, slots=64)
    return CountingEngine(), info


class FaultyEngine:
    """Passes all on to an engine, but for sequences that ask for a fault."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._asked: dict[int, Fault] = {}
        self._backward = False

    @property
    def stats(self) -> EngineStats:
        stats: EngineStats = self._engine.stats
        if self._backward:
            return replace(stats, running=-3, prefix_queries=-100, prefix_hits=-100)
        return stats

    @property
    def has_work(self) -> bool:
        return bool(self._engine.has_work)

    def add(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        seed: int | None,
        adapter: str | None = None,
    ) -> None:
        if prompt_ids[0] == MARK:
            self._asked[sequence_id] = Fault(prompt_ids[1])
        self._engine.add(sequence_id, prompt_ids, params, seed, adapter)

    def cancel(self, sequence_id: int) -> SequenceOutput | None:
        self._asked.pop(sequence_id, None)
        output: SequenceOutput | None = self._engine.cancel(sequence_id)
        return output

    def check_idle(self) -> None:
        self._engine.check_idle()

    def step(self) -> list[SequenceOutput]:
        if Fault.SLOW in self._asked.values():
            time.sleep(SLOW_SECONDS)
        outputs: list[SequenceOutput] = []
        for output in self._engine.step():
            fault = self._asked.get(output.sequence_id, Fault.NONE)
            if output.finish_reason is not None:
                self._asked.pop(output.sequence_id, None)
            outputs += self._falsified(output, fault)
        return outputs

    def _falsified(self, output: SequenceOutput, fault: Fault) -> list[SequenceOutput]:
        if fault in PIPE_FAULTS:
            spoil_pipe(fault)
        if fault in MEMORY_FAULTS:
            self._exhaust(output.sequence_id, fault)
        if fault is Fault.FORGET:
            self.cancel(output.sequence_id)
        if fault is Fault.LEAK and output.finish_reason is not None:
            self._engine._scheduler.cache.slots.take_oldest()
        self._backward |= fault is Fault.COUNTERS_BACKWARD
        return falsified(output, fault)

    def _exhaust(self, sequence_id: int, fault: Fault) -> None:
        """Fail the model's next call, once, the way that torch or Python do."""
        self._asked.pop(sequence_id, None)
        runner = self._engine._runner
        run = runner.run

        def fail(batch: Any) -> Any:
            runner.run = run
            if fault is Fault.OUT_OF_MEMORY:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
                )
            raise MemoryError

        runner.run = fail


def falsified(output: SequenceOutput, fault: Fault) -> list[SequenceOutput]:
    """What is told in place of an output."""
    own = output.sequence_id
    if fault is Fault.STRANGERS:
        return [
            SequenceOutput(10**9, (5,)),
            output,
            SequenceOutput(10**9 + 1, (5,), "length"),
            SequenceOutput(-1, (), "error", error="whose?"),
        ]
    if fault is Fault.AFTER_THE_END and output.finish_reason is not None:
        more = [SequenceOutput(own, (5, 6)), SequenceOutput(own, (7,), "stop")]
        return [output, *more, SequenceOutput(own, (), "error", error="after the end")]
    if fault is Fault.OUT_OF_VOCABULARY:
        return [replace(output, token_ids=(10**9,))]
    if fault is Fault.NEGATIVE_TOKEN:
        return [replace(output, token_ids=(-7,))]
    if fault is Fault.WRONG_COUNTS:
        score = TokenLogprob(5, -1.0, ())
        return [replace(output, token_ids=(5, 6), logprobs=(score,), cached_tokens=-5)]
    return [] if fault is Fault.FORGET else [output]


def spoil_pipe(fault: Fault) -> None:
    """Write what no message is to the server's end."""
    pipe = int(sys.argv[1])
    message = pickle.dumps(SequenceOutput(1, (5,) * 1000))
    if fault is Fault.HALF_A_MESSAGE:
        os.write(pipe, struct.pack("!i", len(message)) + message[: len(message) // 2])
        os._exit(0)
    elif fault is Fault.GARBAGE:
        garbage = bytes(range(256)) * 4
        os.write(pipe, struct.pack("!i", len(garbage)) + garbage)
    elif fault is Fault.ABSURD_LENGTH:
        os.write(pipe, struct.pack("!iQ", -1, 2**62) + b"x" * 100)
    else:
        message = pickle.dumps({"nobody": "sends this"})
        os.write(pipe, struct.pack("!i", len(message)) + message)


def install() -> None:
    """Make the engine's process load a faulty engine. Before it imports its loop."""
    run = engine_loop.run_engine

    def run_faulty(load: engine_loop.Load, inbox: engine_loop.Inbox, send: Callable[[Any], None]) -> None:
        chosen: Callable[..., Any] = load_counting if os.environ.get("FAULTS_ENGINE") == "counting" else load

        def load_faulty(progress: Callable[[str], None]) -> tuple[Any, ModelInfo]:
            engine, info = chosen(progress)
            return FaultyEngine(engine), info

        run(load_faulty, inbox, send)

    engine_loop.run_engine = run_faulty

"""The loop that an engine lives in, on a thread or in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from ..errors import ModelLoadError
from ..outputs import EngineStats, ModelInfo, SequenceOutput
from ..sampling_params import SamplingParams
from .messages import Add, Cancel, Crashed, FromEngine, LoadFailed, Loading, Ready, Step, ToEngine

log = logging.getLogger(__name__)

Inbox = SimpleQueue[ToEngine | None]
"""Messages to the engine; None ends it."""


class SteppingEngine(Protocol):
    """What the loop needs of an engine."""

    stats: EngineStats

    @property
    def has_work(self) -> bool: ...

    def add(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        seed: int | None,
        adapter: str | None = None,
    ) -> None: ...

    def cancel(self, sequence_id: int) -> SequenceOutput | None: ...

    def step(self) -> list[SequenceOutput]: ...

    def check_idle(self) -> None: ...


Load = Callable[[Callable[[str], None]], tuple[SteppingEngine, ModelInfo]]
"""Loads an engine; is given a function to tell each stage to. Raises ModelLoadError."""


def run_engine(load: Load, inbox: Inbox, send: Callable[[FromEngine], None]) -> None:
    """Load an engine and step it until the inbox says None. Whatever ends it is told in a last message."""
    try:
        engine, info = load(lambda stage: send(Loading(stage)))
    except ModelLoadError as error:
        log.debug("the model cannot be loaded", exc_info=True)
        send(LoadFailed(error))
        return
    except Exception as error:
        log.exception("loading the model raised")
        send(LoadFailed(ModelLoadError(f"{type(error).__name__}: {error}", permanent=False)))
        return
    send(Ready(info))
    send(Step((), engine.stats))
    try:
        while _step(engine, inbox, send):
            pass
    except Exception as error:
        log.exception("an engine step raised")
        send(Crashed(f"{type(error).__name__}: {error}"))


def _step(engine: SteppingEngine, inbox: Inbox, send: Callable[[FromEngine], None]) -> bool:
    """Take all messages, do one step, send what it did. False when told to end."""
    outputs: list[SequenceOutput] = []
    while True:
        try:
            # With nothing to do, wait; otherwise take what is there and go on.
            message = inbox.get(block=not engine.has_work and not outputs)
        except Empty:
            break
        if message is None:
            return False
        output = _apply(engine, message)
        if output is not None:
            outputs.append(output)
    if engine.has_work:
        outputs += engine.step()
    send(Step(tuple(outputs), engine.stats))
    if not engine.has_work:
        # After what it did is told: nobody's answer is at fault.
        engine.check_idle()
    return True


def _apply(engine: SteppingEngine, message: ToEngine) -> SequenceOutput | None:
    if isinstance(message, Cancel):
        return engine.cancel(message.sequence_id)
    assert isinstance(message, Add)
    try:
        engine.add(message.sequence_id, message.prompt_ids, message.params, message.seed, message.adapter)
    except ValueError as error:
        return SequenceOutput(message.sequence_id, (), "error", error=str(error))
    return None

"""One engine: started, listened to, replaced when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from ..errors import BasaranError, EngineFailed, ModelLoadError
from ..outputs import EngineStats, ModelInfo
from .messages import Add, Cancel, Crashed, FromEngine, LoadFailed, Loading, Ready, Step
from .stream import StreamOutput, TokenStream
from .transport import Transport

log = logging.getLogger(__name__)

ReplicaState = Literal["loading", "ready", "failed", "stopped"]

FIRST_BACKOFF, LAST_BACKOFF = 0.2, 30.0
"""Seconds before a dead engine is replaced: doubled at each failure, the first again after a steady time."""

STEADY_SECONDS = 60.0

CRASH_LOOP = 5
"""Deaths in a row, none of them after a steady time, from which on an engine counts as lost."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as seen from outside, at one moment."""

    number: int
    state: ReplicaState
    stage: str
    """What it is doing, or why it failed."""
    restarts: int
    stats: EngineStats
    device: str
    """"" until its model is loaded."""
    last_step_at: float
    """When it last told of a step, in seconds since 1970; 0 if it never did."""
    step_age: float
    """Seconds for which it has had work in hand and done no step; 0 without work."""
    lost: bool
    """Whether it dies again and again."""


class Replica:
    """Owns one engine, through its transport, and the thread that reads it.

    All fields are written under the pool's lock, but for `stats`, a new record each step. `live` holds
    every sequence that was admitted here and has not ended; taking an entry out is what ends it.
    """

    def __init__(
        self,
        number: int,
        start: Callable[[], Transport],
        lock: AbstractContextManager[object],
        on_ready: Callable[[ModelInfo], None],
        on_change: Callable[[], None],
        on_step: Callable[[int, EngineStats], None] = lambda number, stats: None,
        *,
        patient: bool = True,
    ) -> None:
        """`on_ready` sees the model before requests do and may raise ModelLoadError; `on_change` is called
        after each change of state, `on_step` after each step. All without the lock. A `patient` replica tries
        again where loading failed for want of something that may come.
        """
        self.number = number
        self.state: ReplicaState = "loading"
        self.stage = "starting"
        self.restarts = 0
        self.stats = EngineStats()
        self.failure: ModelLoadError | None = None
        """Set once trying again is useless."""
        self.live: dict[int, tuple[TokenStream, int]] = {}
        self._start = start
        self._lock = lock
        self._on_ready = on_ready
        self._on_change = on_change
        self._on_step = on_step
        self._device = ""
        self._deaths = 0
        """In a row."""
        self._last_step_at = 0.0
        self._busy_since = 0.0
        """When it last told of a step or, since then, got its first work; in seconds of time.monotonic()."""
        self._transport: Transport | None = None
        self._was_ready = False
        self._patient = patient
        self._ready_at: float | None = None
        """When this life's engine became ready."""
        self._kill_reason = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"replica-{number}", daemon=True)

    def __repr__(self) -> str:
        return f"<Replica {self.number} {self.state} live={len(self.live)}>"

    @property
    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            self.number,
            self.state,
            self.stage,
            self.restarts,
            self.stats,
            self._device,
            self._last_step_at,
            self.step_age,
            self._deaths >= CRASH_LOOP,
        )

    @property
    def step_age(self) -> float:
        """Seconds for which it has had work in hand and done no step; 0 without work."""
        return time.monotonic() - self._busy_since if self.live else 0.0

    def start(self) -> None:
        self._thread.start()

    def add(self, message: Add, stream: TokenStream, index: int) -> None:
        """Admit a sequence; under the lock, in state ready."""
        assert self._transport is not None
        if not self.live:
            self._busy_since = time.monotonic()
        self.live[message.sequence_id] = (stream, index)
        self._transport.send(message)

    def cancel(self, sequence_id: int) -> None:
        """Ask the engine to end a sequence, unless it has ended. Under the lock."""
        if sequence_id in self.live and self._transport is not None:
            self._transport.send(Cancel(sequence_id))

    def kill(self, reason: str) -> None:
        """Replace an engine that hangs; its requests end with an error. Under the lock."""
        if self._transport is not None and self.state == "ready":
            log.error("engine %d is killed: %s", self.number, reason)
            self._kill_reason = reason
            self._transport.kill()

    def stop(self) -> None:
        """End the engine and the thread for good; returns once both are gone."""
        self._stopping.set()
        with self._lock:
            transport = self._transport
        if transport is not None:
            transport.stop()
        self._thread.join()

    # -- the replica's own thread ---------------------------------------------------------------------

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stopping.is_set():
            error = self._live_once()
            if self._stopping.is_set():
                break
            # What was ready once can be so again: memory may be short, or a disk away, for a moment.
            final = isinstance(error, ModelLoadError) and (error.permanent or not self._patient)
            if isinstance(error, ModelLoadError) and final and not self._was_ready:
                log.error("the model cannot be loaded: %s", error.message)
                with self._lock:
                    self.failure = error
                self._on_change()
                return
            if self._ready_at is not None and time.monotonic() - self._ready_at > STEADY_SECONDS:
                backoff = FIRST_BACKOFF
                self._deaths = 0
            # A model that cannot be loaded now, for want of a hub, is no reason to kill the whole server.
            self._deaths += not isinstance(error, ModelLoadError)
            log.error("engine %d failed, restarting in %.1f s: %s", self.number, backoff, error.message)
            self._stopping.wait(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)
            with self._lock:
                self.restarts += 1
        self._change("stopped", "stopped")

    def _live_once(self) -> BasaranError:
        """One engine's life, from its start to its end; returns why it ended."""
        self._kill_reason = ""
        self._ready_at = None
        self._change("loading", "starting")
        try:
            transport = self._start()
        except Exception as cause:
            log.exception("the engine cannot be started")
            failure = EngineFailed(f"the engine cannot be started: {cause}")
            self._change("failed", failure.message)
            return failure
        with self._lock:
            self._transport = transport
        if self._stopping.is_set():
            transport.stop()
        error = self._read(transport)
        with self._lock:
            self._transport = None
            self.state, self.stage = "failed", error.message
            orphans, self.live = list(self.live.values()), {}
        for stream, _ in orphans:
            stream.fail(error)
        self._on_change()
        ending = transport.close()
        log.info("engine %d ended: %s", self.number, ending)
        return error

    def _read(self, transport: Transport) -> BasaranError:
        while True:
            try:
                message = transport.receive()
                error = self._handle(message)
            except EOFError:
                return EngineFailed(self._kill_reason or "the engine died")
            except ModelLoadError as failure:
                return failure
            except Exception as cause:
                log.exception("a message of the engine could not be handled")
                return EngineFailed(f"the engine's message could not be handled: {cause}")
            if error is not None:
                return error

    def _handle(self, message: FromEngine) -> BasaranError | None:
        """Act on a message; the error if it is the engine's last."""
        match message:
            case Step():
                self._deliver(message)
            case Loading(stage):
                log.info("engine %d: %s", self.number, stage)
                self._change("loading", stage)
            case Ready(info):
                self._on_ready(info)
                log.info("engine %d is ready: %s", self.number, info)
                self._was_ready = True
                self._ready_at = time.monotonic()
                self._device = info.device
                self._change("ready", "ready")
            case LoadFailed(failure):
                return failure
            case Crashed(reason):
                return EngineFailed(f"the engine failed: {reason}")
        return None

    def _deliver(self, step: Step) -> None:
        self.stats = step.stats
        self._last_step_at, self._busy_since = time.time(), time.monotonic()
        self._on_step(self.number, step.stats)
        with self._lock:
            entries = [
                self.live.pop(output.sequence_id, None)
                if output.finish_reason is not None
                else self.live.get(output.sequence_id)
                for output in step.outputs
            ]
            lost = self._take_lost(step.stats)
        for stream, _ in lost:
            stream.fail(EngineFailed("the engine has lost the request"))
        for entry, output in zip(entries, step.outputs, strict=True):
            if entry is None:
                continue
            stream, index = entry
            if output.finish_reason == "error":
                stream.fail(EngineFailed(output.error or "the engine refused the sequence"))
            else:
                stream.put(StreamOutput(index, output))

    def _take_lost(self, stats: EngineStats) -> list[tuple[TokenStream, int]]:
        """Sequences that the engine was given and has no more, although it told no end. Under the lock.

        Found once all that are older have ended. Without this such a request would wait for as long as others
        keep the engine going.
        """
        lost = []
        while self.live:
            # They are in the order in which they were given, so the first that the engine has is the end.
            first = next(iter(self.live))
            if first > stats.latest or 0 < stats.oldest <= first:
                break
            log.error("engine %d has lost sequence %d", self.number, first)
            lost.append(self.live.pop(first))
        return lost

    def _change(self, state: ReplicaState, stage: str) -> None:
        with self._lock:
            self.state, self.stage = state, stage
        self._on_change()

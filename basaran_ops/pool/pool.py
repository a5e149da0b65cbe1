"""The thread-safe pool that every request draws from."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import BasaranError, DeadlineExceeded, ModelLoadError, NotReady, Overloaded
from ..outputs import EngineStats, ModelInfo
from ..sampling_params import SamplingParams
from .messages import Add
from .replica import Replica, ReplicaStatus
from .stream import TokenStream
from .transport import Transport


@dataclass(frozen=True, slots=True)
class SequenceWork:
    """One sequence to generate."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int | None
    adapter: str | None = None
    """None for the model itself."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool as seen from outside, at one moment."""

    ready: bool
    """Whether a request would be taken, but for a full queue."""
    draining: bool
    outstanding: int
    """Sequences admitted and not ended."""
    capacity: int
    """The number of outstanding sequences from which requests are refused."""
    oldest_waiting: float
    """Seconds for which the request has waited that has waited longest for its first token; 0 for none."""
    replicas: tuple[ReplicaStatus, ...]

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return sum(replica.stats.running for replica in self.replicas)

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return max(0, self.outstanding - self.running)

    @property
    def word(self) -> Literal["loading", "ready", "draining", "failed"]:
        """The state in a word."""
        if self.draining:
            return "draining"
        if self.ready:
            return "ready"
        return "loading" if any(replica.state == "loading" for replica in self.replicas) else "failed"


def shutting_down() -> BasaranError:
    """The error of a request that a server's end cuts short."""
    return DeadlineExceeded("the server is shutting down")


class GenerationPool:
    """Balances sequences over replicas and ends each exactly once.

    `_lock` guards the replicas' states and live sequences, `_draining` and `_streams`. It is held for
    dictionary work only: messages to engines and to streams go through queues that never block.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[], Transport]],
        *,
        capacity: int,
        on_ready: Callable[[ModelInfo], None] = lambda info: None,
        on_failure: Callable[[ModelLoadError], None] = lambda error: None,
        on_step: Callable[[int, EngineStats], None] = lambda number, stats: None,
        patient: bool = True,
    ) -> None:
        """One replica for each of `starts`, which start its engine.

        `on_ready` is called on each replica's thread before it takes requests; `on_failure` once, when no
        replica can ever load its model; `on_step`, with the replica's number, on its thread after each step.
        A `patient` pool tries again where a model cannot be loaded now; else the first failure is the last.
        """
        self.capacity = capacity
        # Reentrant: a signal handler may close a stream, or all, on a thread that holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._ids = itertools.count(1)
        self._draining = False
        self._streams: dict[TokenStream, list[tuple[Replica, int]]] = {}
        self._on_failure = on_failure
        self._replicas = [
            Replica(number, start, self._lock, on_ready, self._replica_changed, on_step, patient=patient)
            for number, start in enumerate(starts)
        ]

    def __repr__(self) -> str:
        return f"<GenerationPool outstanding={self._outstanding()}/{self.capacity} {self._replicas}>"

    def start(self) -> None:
        """Start all engines; returns at once."""
        for replica in self._replicas:
            replica.start()

    def submit(self, work: Sequence[SequenceWork]) -> TokenStream:
        """Admit a request of one or more sequences, each to the replica with the fewest.

        Never blocks. A request is taken whole if there is room for its first sequence: one larger than
        the pool waits its turn inside and is not refused for ever. Raises Overloaded or NotReady.
        """
        stream = TokenStream(len(work), self._cancel)
        with self._lock:
            ready = self._admissible()
            placed = []
            for index, item in enumerate(work):
                replica = min(ready, key=lambda r: len(r.live))
                message = Add(next(self._ids), item.prompt_ids, item.params, item.seed, item.adapter)
                replica.add(message, stream, index)
                placed.append((replica, message.sequence_id))
            self._streams[stream] = placed
        return stream

    def release(self, stream: TokenStream) -> None:
        """Forget a stream whose consumer is done with it, closing it if need be. Idempotent."""
        stream.close()
        with self._lock:
            self._streams.pop(stream, None)

    def check_ready(self) -> None:
        """Raise NotReady or Overloaded, saying why, if a request would be refused now."""
        with self._lock:
            self._admissible()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until a replica is ready.

        Raises the ModelLoadError if none can be, NotReady if `timeout` seconds pass.
        """
        with self._changed:
            self._changed.wait_for(self._settled, timeout)
            failure = self._failure()
            if failure is not None:
                raise failure
            if not self._ready():
                raise NotReady("the model is still loading", code="model_loading")

    def drain(self) -> None:
        """Refuse new requests from now on; those that are in go on."""
        with self._lock:
            self._draining = True

    def kill_stalled(self, seconds: float) -> None:
        """Replace engines that have had work in hand for so long without a step."""
        with self._lock:
            for replica in self._replicas:
                if replica.step_age > seconds:
                    replica.kill(f"it has done no step for {replica.step_age:.0f} s")

    def abort(self, error: Callable[[], BasaranError] = shutting_down) -> None:
        """End every request now, each with an error of its own: one object must not be raised twice."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.fail(error())

    def close(self, error: Callable[[], BasaranError] = shutting_down) -> None:
        """End all requests, with an error each, engines and threads. Idempotent."""
        self.drain()
        self.abort(error)
        # At the same time: each may take seconds. The last on this thread: at exit no other can be started.
        *others, last = self._replicas
        stopping = [threading.Thread(target=replica.stop, daemon=True) for replica in others]
        for thread in stopping:
            thread.start()
        last.stop()
        for thread in stopping:
            thread.join()

    def status(self) -> PoolStatus:
        with self._lock:
            return PoolStatus(
                ready=bool(self._ready()) and not self._draining,
                draining=self._draining,
                outstanding=self._outstanding(),
                capacity=self.capacity,
                oldest_waiting=self._oldest_waiting(),
                replicas=tuple(replica.status for replica in self._replicas),
            )

    # -- under the lock -------------------------------------------------------------------------------

    def _admissible(self) -> list[Replica]:
        if self._draining:
            raise NotReady("the server is shutting down", code="shutting_down")
        ready = self._ready()
        if not ready:
            raise self._not_ready()
        if self._outstanding() >= self.capacity:
            raise Overloaded("all slots are busy and the queue is full; try again later")
        return ready

    def _not_ready(self) -> NotReady:
        if any(replica.state == "loading" and not replica.restarts for replica in self._replicas):
            return NotReady(f"the model is loading: {self._replicas[0].stage}", code="model_loading")
        return NotReady(f"no engine is running: {self._replicas[0].stage}", code="engine_failed")

    def _ready(self) -> list[Replica]:
        return [replica for replica in self._replicas if replica.state == "ready"]

    def _outstanding(self) -> int:
        return sum(len(replica.live) for replica in self._replicas)

    def _oldest_waiting(self) -> float:
        now = time.monotonic()
        return max(
            (now - s.submitted_at for s in list(self._streams) if not s.begun and not s.closed), default=0.0
        )

    def _failure(self) -> ModelLoadError | None:
        failures = [replica.failure for replica in self._replicas]
        return failures[0] if all(failures) else None

    def _settled(self) -> bool:
        return bool(self._ready()) or self._failure() is not None

    # -- called by streams and replicas, without the lock ---------------------------------------------

    def _cancel(self, stream: TokenStream, index: int | None) -> None:
        with self._lock:
            placed = self._streams.get(stream, [])
            for replica, sequence_id in placed if index is None else placed[index : index + 1]:
                replica.cancel(sequence_id)

    def _replica_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()
            failure = self._failure()
        if failure is not None:
            self._on_failure(failure)

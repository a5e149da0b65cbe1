"""An engine without a model: it counts. Sequence k's j-th token is 1000 k + j.

Run as a module it is an engine process, as ProcessTransport starts it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue

from basaran_ops.outputs import EngineStats, ModelInfo, SequenceOutput
from basaran_ops.pool.engine_loop import Inbox, run_engine
from basaran_ops.sampling_params import SamplingParams

INFO = ModelInfo("", 100, 100, frozenset(), "float32", "cpu", "fake", 2)

CRASH, DIE, REFUSE = (13,), (14,), (15,)
"""Prompts that make the step raise, the process exit, and the engine refuse the sequence."""


class FakeEngine:
    """Steps when told to, or freely."""

    def __init__(self, *, free: bool = True) -> None:
        self.stats = EngineStats()
        self.latest = 0
        self.running: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        self.go = threading.Semaphore(0)
        self.free = free

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        seed: int | None,
        adapter: str | None = None,
    ) -> None:
        if prompt_ids == REFUSE:
            raise ValueError("no room for this prompt")
        self.latest = sequence_id
        self.running[sequence_id] = (0, params.max_tokens, prompt_ids)

    def cancel(self, sequence_id: int) -> SequenceOutput | None:
        if self.running.pop(sequence_id, None) is None:
            return None
        return SequenceOutput(sequence_id, (), "abort")

    def step(self) -> list[SequenceOutput]:
        if not self.free:
            # Time out, so that the loop still hears of cancellations.
            if not self.go.acquire(timeout=0.01):
                return []
        else:
            time.sleep(0.001)
        outputs = []
        for sequence_id, (done, limit, prompt) in list(self.running.items()):
            if prompt == CRASH:
                raise RuntimeError("the step raised")
            if prompt == DIE:
                sys.exit(7)
            reason = "length" if done + 1 == limit else None
            outputs.append(SequenceOutput(sequence_id, (1000 * sequence_id + done,), reason))
            if reason:
                del self.running[sequence_id]
            else:
                self.running[sequence_id] = (done + 1, limit, prompt)
        self.tell(self.stats.step + 1)
        return outputs

    def tell(self, step: int) -> None:
        oldest = min(self.running, default=0)
        self.stats = EngineStats(step, running=len(self.running), latest=self.latest, oldest=oldest)

    def check_idle(self) -> None:
        pass


def load(progress: Callable[[str], None]) -> tuple[FakeEngine, ModelInfo]:
    progress("counting")
    return FakeEngine(), INFO


def main() -> None:
    connection: Connection = Connection(int(sys.argv[1]))
    connection.recv()
    inbox: Inbox = SimpleQueue()

    def read() -> None:
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    run_engine(load, inbox, connection.send)


if __name__ == "__main__":
    main()

"""One model, its sequences, and the step that moves them all on by a token."""

from __future__ import annotations

import time
from dataclasses import replace

from ..outputs import EngineStats, SequenceOutput
from ..sampling_params import SamplingParams
from .constraints import Constraints
from .logprobs import sampling_rows, score
from .runner import ModelRunner
from .sampler import Sampler
from .scheduler import Scheduler
from .sequence import Sequence


class Engine:
    """Owns the runner, the scheduler and every sequence. Not thread-safe: one loop calls it."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, constraints: Constraints | None = None
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._sampler = Sampler(scheduler.eos_token_ids, constraints)
        self.stats = EngineStats()

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(
        self, sequence_id: int, prompt_ids: tuple[int, ...], params: SamplingParams, seed: int | None
    ) -> None:
        """Queue a sequence. Raises ValueError for a prompt that no slot can hold."""
        self._scheduler.add(Sequence(sequence_id, prompt_ids, params, seed))

    def cancel(self, sequence_id: int) -> SequenceOutput | None:
        """End a sequence; its slot is free for the next step. None if it has ended already."""
        output = self._scheduler.cancel(sequence_id)
        # There may be no next step, to tell of it.
        self.stats = replace(self.stats, **self._occupancy())
        return output

    def step(self) -> list[SequenceOutput]:
        """Schedule, run, sample, update: at most one new token for each sequence."""
        started = time.perf_counter()
        batch = self._scheduler.schedule()
        logits = self._runner.run(batch)
        tokens = self._sampler.sample(sampling_rows(batch, logits), [c.sequence for c in batch.sampling])
        outputs = self._scheduler.update(batch, tokens, score(batch, logits, tokens))
        self.stats = EngineStats(
            step=self.stats.step + 1,
            batch_size=len(batch.chunks),
            batch_tokens=batch.num_tokens,
            prefix_queries=self._scheduler.prefix_queries,
            prefix_hits=self._scheduler.prefix_hits,
            duration=time.perf_counter() - started,
            **self._occupancy(),
        )
        return outputs

    def check_idle(self) -> None:
        """Raise RuntimeError if nothing runs and yet a slot is taken."""
        self._scheduler.check_idle()

    def _occupancy(self) -> dict[str, int]:
        return {
            "running": len(self._scheduler.running),
            "waiting": len(self._scheduler.waiting),
            "cached_tokens": self._scheduler.cached_tokens,
        }

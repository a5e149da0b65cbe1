"""One model, its sequences, and the step that moves them all on by a token."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..outputs import EngineStats, SequenceOutput
from ..sampling_params import SamplingParams
from .adapters import Adapters
from .constraints import Constraints
from .logprobs import accepted, sampling_rows, score
from .memory import NO_MEMORY, MemoryUse, free_unused, is_out_of_memory
from .runner import ModelRunner
from .sampler import Sampler
from .scheduler import Scheduler
from .sequence import Batch, Chunk, Sequence

log = logging.getLogger(__name__)

MEASURE_SECONDS = 1.0
"""How often the device's memory is measured."""


class Engine:
    """Owns the runner, the scheduler and every sequence. Not thread-safe: one loop calls it."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        constraints: Constraints | None = None,
        memory: Callable[[], MemoryUse] = lambda: NO_MEMORY,
        adapters: Adapters | None = None,
    ) -> None:
        """`memory` measures what the device has and what of it is ours; `adapters` are those of the runner's
        model.
        """
        self._runner = runner
        self._scheduler = scheduler
        self._sampler = Sampler(
            scheduler.eos_token_ids, constraints, separate=scheduler.completion_length is not None
        )
        self._memory = memory
        self._adapters = adapters
        self._measured_at = -MEASURE_SECONDS
        self.stats = EngineStats()
        self._tell()

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        seed: int | None,
        adapter: str | None = None,
    ) -> None:
        """Queue a sequence. Raises ValueError for a prompt that no slot can hold, or an unknown adapter."""
        if adapter is not None and adapter not in (self._adapters or ()):
            raise ValueError(f"the model has no adapter {adapter!r}")
        self._scheduler.add(Sequence(sequence_id, prompt_ids, params, seed, adapter))

    def cancel(self, sequence_id: int) -> SequenceOutput | None:
        """End a sequence; its slot is free for the next step. None if it has ended already."""
        output = self._scheduler.cancel(sequence_id)
        # There may be no next step, to tell of it.
        self._tell()
        return output

    def step(self) -> list[SequenceOutput]:
        """Schedule, run, sample, update: at most one new token for each sequence.

        Where the device has no memory left for the step, what asked for it last ends with an error.
        """
        started = time.monotonic()
        batch = self._scheduler.schedule()
        for chunk in batch.chunks:
            chunk.sequence.begin(started)
        try:
            outputs = self._run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            outputs = self._give_up(batch)
        duration = time.monotonic() - started
        self._scheduler.observe(batch, duration)
        self._tell(
            step=self.stats.step + 1,
            batch_size=len(batch.chunks),
            batch_tokens=batch.num_tokens,
            duration=duration,
        )
        return outputs

    def _run(self, batch: Batch) -> list[SequenceOutput]:
        if self._adapters is not None:
            self._adapters.activate(batch.adapter)
        logits = self._runner.run(batch)
        rows = sampling_rows(batch, logits)
        spoiled = self._spoiled(batch, rows) if self._runner.may_overflow else []
        tokens = self._sampler.sample(rows, [c.sequence for c in batch.sampling])
        scores, further = score(batch, logits, tokens), accepted(batch, logits, tokens)
        outputs = self._scheduler.update(batch, tokens, scores, further)
        return self._give_up_on_numbers(spoiled, outputs) if spoiled else outputs

    def _spoiled(self, batch: Batch, rows: torch.Tensor) -> list[Chunk]:
        """The chunks whose logits are no numbers: they left the range of the model's type."""
        found = []
        for chunk, finite in zip(batch.sampling, rows.isfinite().any(dim=-1).tolist(), strict=True):
            if not finite:
                chunk.sequence.spoiled = True
                found.append(chunk)
        return found

    def _give_up_on_numbers(
        self, spoiled: list[Chunk], outputs: list[SequenceOutput]
    ) -> list[SequenceOutput]:
        """End such sequences with an error, and clear what would spoil those after them in their slots."""
        ids = {chunk.sequence.id for chunk in spoiled}
        kept = [output for output in outputs if output.sequence_id not in ids]
        for chunk in spoiled:
            if chunk.sequence.id in self._scheduler.running:
                self._scheduler.cancel(chunk.sequence.id)
            self._runner.forget(chunk.slot)
            reason = "the model's numbers left the range of its type"
            kept.append(SequenceOutput(chunk.sequence.id, (), "error", error=reason))
        return kept

    def _give_up(self, batch: Batch) -> list[SequenceOutput]:
        """Make room. Nothing of the step is recorded, so that the others do it again."""
        log.error("the device is out of memory: %s", self._memory())
        self._tell(out_of_memory=self.stats.out_of_memory + 1)
        free_unused()
        return [
            self._scheduler.fail(sequence, "the device has no memory left for this request")
            for sequence in self._scheduler.last_to_ask(batch)
        ]

    def check_idle(self) -> None:
        """Raise RuntimeError if nothing runs and yet a slot is taken."""
        self._scheduler.check_idle()

    def _tell(self, **changes: Any) -> None:
        """Publish a new record of what is going on."""
        now = time.monotonic()
        if now - self._measured_at >= MEASURE_SECONDS:
            use = self._memory()
            self._measured_at = now
            changes |= {"memory_used": use.used, "memory_total": use.total}
        self.stats = replace(
            self.stats,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            latest=self._scheduler.latest,
            oldest=self._scheduler.oldest,
            cached_tokens=self._scheduler.cached_tokens,
            prefix_queries=self._scheduler.prefix_queries,
            prefix_hits=self._scheduler.prefix_hits,
            drafted_tokens=self._scheduler.drafted_tokens,
            accepted_tokens=self._scheduler.accepted_tokens,
            **changes,
        )

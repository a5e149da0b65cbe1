"""What may be done to a model's batches without changing a token, seen on short prompts when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..sampling_params import SamplingParams
from .cohort import Cohort
from .cohort_scheduler import CohortAbilities
from .generate_steps import GenerateSteps
from .probe import PROBE_TOKENS, RunnerUnfit, probe_ids, relative_error, tolerance
from .sequence import Chunk, Sequence

log = logging.getLogger(__name__)

SPARSE = ("index_topk", "index_topk_blocks")
"""Names in a config of how many keys each token chooses to see. Beyond so many, more than a probe has,
padding and chunks would change the choice.
"""

DECODED = 4
"""Tokens decoded after each prompt."""

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Logits, and those that they should be."""


class PaddedProbe:
    """Finds out what may be done to a batch: each question compares logits with those of prompts alone."""

    def __init__(self, steps: GenerateSteps, model: PreTrainedModel) -> None:
        self._steps = steps
        self._model = model
        self._short = probe_ids(model, 5, offset=3)
        self._long = probe_ids(model, PROBE_TOKENS)
        self.output_size = 0
        """Columns of the logits."""
        self._other = probe_ids(model, PROBE_TOKENS, offset=2)
        self._alone = {}
        for prompt in (self._short, self._long):
            self._alone[len(prompt)] = self._run_alone(prompt)

    def abilities(self) -> CohortAbilities:
        batches = self._holds(self._batches)
        return CohortAbilities(
            batches=batches,
            pads=batches and not self._is_sparse() and self._holds(self._pads),
            chunks=not self._is_sparse() and self._holds(self._chunks),
            interleaves=self._holds(self._interleaves),
        )

    def scores(self) -> bool:
        """Whether the logits at a prompt's tokens are what the model thinks will follow each."""
        return self._holds(self._scores)

    def drops(self) -> bool:
        """Whether rows can be taken out of a batch."""
        return self._holds(self._drops)

    def slot_bytes(self) -> tuple[int, int]:
        """What a row keeps in memory: bytes a token, and bytes however long it is."""
        sizes = []
        for prompt in (self._short, self._long):
            cohort = self._cohort(prompt)
            self._steps.prefill(cohort, self._prompt_chunks(cohort))
            sizes.append(sum(tensor.nbytes for tensor in _tensors(cohort.state.kwargs)))
        per_token = max(0, sizes[1] - sizes[0]) // (len(self._long) - len(self._short))
        if self._model.config.is_encoder_decoder:
            # What the decoder keeps of each of its own tokens.
            before = sizes[1]
            self._steps.advance(cohort, self._next_chunks(cohort))
            per_token += max(0, sum(tensor.nbytes for tensor in _tensors(cohort.state.kwargs)) - before)
        return per_token, max(0, sizes[0] - per_token * len(self._short))

    def _run_alone(self, prompt: list[int]) -> list[torch.Tensor]:
        """Logits after the prompt and after each token more."""
        cohort = self._cohort(prompt)
        try:
            logits = [self._steps.prefill(cohort, self._prompt_chunks(cohort))]
            logits += [self._steps.advance(cohort, self._next_chunks(cohort)) for _ in range(DECODED)]
        except Exception as error:
            raise RunnerUnfit(f"{type(self._model).__name__}: {type(error).__name__}: {error}") from error
        self.output_size = logits[0].shape[-1]
        if not all(bool(row.isfinite().all()) for row in logits):
            raise RunnerUnfit(f"{type(self._model).__name__} gives logits that are not finite")
        return logits

    def _holds(self, question: Callable[[], Pairs]) -> bool:
        try:
            pairs = question()
        except Exception:
            log.debug("a probe raised", exc_info=True)
            return False
        return all(
            relative_error(logits, reference) <= tolerance(self._model, same_kernels=True)
            for logits, reference in pairs
        )

    def _is_sparse(self) -> bool:
        config = self._model.config.get_text_config()
        return any(hasattr(config, name) for name in SPARSE)

    def _scores(self) -> Pairs:
        if self._model.config.is_encoder_decoder:
            raise ValueError("a decoder never reads the prompt")
        beginning = self._run_alone(self._long[:5])
        cohort = self._cohort(self._long)
        (sequence,) = cohort.sequences
        chunk = Chunk(sequence, 0, 0, sequence.prompt_length, scored=True)
        logits = self._steps.prefill(cohort, [chunk])
        return [(logits[4], beginning[0][0]), (logits[-1], self._alone[len(self._long)][0][0])]

    def _batches(self) -> Pairs:
        pairs = self._batch(self._other, self._long)
        reference = self._alone[len(self._long)]
        return [(logits[-1:], reference[step]) for step, (logits, _) in enumerate(pairs)]

    def _pads(self) -> Pairs:
        return self._batch(self._short, self._long)

    def _batch(self, *prompts: list[int]) -> Pairs:
        """The steps of two prompts together; beside each what the short and the long one give alone."""
        cohort = self._cohort(*prompts)
        steps = [self._steps.prefill(cohort, self._prompt_chunks(cohort))]
        # Several: some models go wrong only once they read what they kept.
        steps += [self._steps.advance(cohort, self._next_chunks(cohort)) for _ in range(DECODED)]
        return [(step, torch.cat(self._references(number))) for number, step in enumerate(steps)]

    def _chunks(self) -> Pairs:
        if self._model.config.is_encoder_decoder:
            raise ValueError("an encoder reads its prompt whole")
        cohort = self._cohort(self._long)
        (sequence,) = cohort.sequences
        for start, length in ((0, 5), (5, PROBE_TOKENS - 5)):
            logits = self._steps.prefill(cohort, [Chunk(sequence, 0, start, length)])
        then = self._steps.advance(cohort, self._next_chunks(cohort))
        reference = self._alone[len(self._long)]
        return [(logits, reference[0]), (then, reference[1])]

    def _interleaves(self) -> Pairs:
        cohorts = [self._cohort(self._short), self._cohort(self._long)]
        pairs = []
        for cohort, reference in zip(cohorts, self._references(0), strict=True):
            pairs.append((self._steps.prefill(cohort, self._prompt_chunks(cohort)), reference))
        for step in range(1, DECODED + 1):
            for cohort, reference in zip(cohorts, self._references(step), strict=True):
                pairs.append((self._steps.advance(cohort, self._next_chunks(cohort)), reference))
        return pairs

    def _drops(self) -> Pairs:
        # Of equal lengths, so that what padding does plays no part.
        cohort = self._cohort(self._other, self._long, self._other)
        self._steps.prefill(cohort, self._prompt_chunks(cohort))
        pairs = []
        for step in range(1, DECODED + 1):
            _, middle, _ = self._next_chunks(cohort)
            if step == 1:
                self._steps.drop(cohort, [middle.sequence])
            logits = self._steps.advance(cohort, [middle])
            pairs.append((logits, self._alone[len(self._long)][step]))
        return pairs

    def _references(self, step: int) -> list[torch.Tensor]:
        return [self._alone[len(prompt)][step] for prompt in (self._short, self._long)]

    def _cohort(self, *prompts: list[int]) -> Cohort:
        params = SamplingParams(max_tokens=DECODED + 1)
        cohort = Cohort(
            Sequence(number, tuple(prompt), params, None) for number, prompt in enumerate(prompts)
        )
        for slot, sequence in enumerate(cohort.sequences):
            sequence.slot = slot
        return cohort

    def _prompt_chunks(self, cohort: Cohort) -> list[Chunk]:
        return [Chunk(sequence, 0, 0, sequence.prompt_length) for sequence in cohort.sequences]

    def _next_chunks(self, cohort: Cohort) -> list[Chunk]:
        """One more token for each row, always the same ones."""
        chunks = []
        for sequence in cohort.sequences:
            sequence.append(self._long[sequence.num_output])
            chunks.append(Chunk(sequence, 0, len(sequence.tokens) - 1, 1))
        return chunks


def _tensors(value: Any, seen: set[int] | None = None) -> list[torch.Tensor]:
    """All tensors in what a cohort keeps."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, (list, tuple)):
        items = list(value)
    elif type(value).__module__.startswith("transformers") and hasattr(value, "__dict__"):
        items = [item for name, item in vars(value).items() if "config" not in name]
    else:
        items = []
    return [tensor for item in items for tensor in _tensors(item, seen)]

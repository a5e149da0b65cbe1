"""Cohorts, stepped as `generate()` steps a batch: for every model that it can generate with."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from .context_fit import ContextWish, fit_context
from .generate_steps import GenerateSteps
from .memory import available_bytes
from .padded_probe import PaddedProbe
from .probe import overflows
from .sequence import Batch

log = logging.getLogger(__name__)


class PaddedRunner:
    """Runs cohorts: left-padded batches (an encoder's right-padded) with the model's own cache.

    Probes at construction find out what may be done to a batch without changing a token. They raise
    RunnerUnfit where not even one prompt alone works.
    """

    name = "padded"

    def __init__(
        self, model: PreTrainedModel, wish: ContextWish, completion_length: int | None = None
    ) -> None:
        """`completion_length` is what an encoder-decoder model's decoder was made for; None if it does not
        say.
        """
        self._steps = GenerateSteps(model)
        self.may_overflow = overflows(model)
        with torch.inference_mode():
            probe = PaddedProbe(self._steps, model)
            self.abilities = probe.abilities()
            self._drops = probe.drops()
            self.scores_prompts = probe.scores()
            self.output_size = probe.output_size
            slot_token_bytes, slot_bytes = probe.slot_bytes()
        self.context_length = fit_context(
            wish,
            slot_token_bytes=slot_token_bytes,
            slot_bytes=slot_bytes,
            available=available_bytes(model.device),
        )
        self.completion_length: int | None = None
        if model.config.is_encoder_decoder:
            self.completion_length = min(self.context_length, completion_length or self.context_length)
        log.info("runs padded: %s, ended rows are %s", self.abilities, "dropped" if self._drops else "kept")

    def forget(self, slot: int) -> None:
        """Nothing: a cohort's cache ends with it."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, vocab], float32: each chunk's last `logit_rows` tokens, chunk by chunk."""
        cohort = batch.cohort
        assert cohort is not None
        with torch.inference_mode():
            if batch.prefill:
                return self._steps.prefill(cohort, batch.prefill).float()
            if self._drops:
                self._steps.drop(cohort, [chunk.sequence for chunk in batch.decoding])
            return self._steps.advance(cohort, batch.decoding).float()

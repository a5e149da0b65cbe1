"""Which runner a model gets, and the scheduler that makes steps for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..settings import Settings
from .cohort_scheduler import CohortScheduler
from .context_fit import ContextWish
from .int8 import check_int8
from .packed_runner import PackedRunner
from .packed_scheduler import PackedScheduler
from .padded_runner import PaddedRunner
from .probe import RunnerUnfit
from .recording_file import RecordingFile
from .runner import ModelRunner
from .scheduler import Scheduler

log = logging.getLogger(__name__)

LENGTH_NAMES = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len", "context_length")
"""What configs call the number of positions that a model was made for."""


def choose_runner(
    model: PreTrainedModel,
    settings: Settings,
    memory_fraction: float,
    *,
    changes: bool = False,
    exclusive: bool = False,
    kept: RecordingFile | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> ModelRunner:
    """The runner that ENGINE_RUNNER names; auto is packed where the model's own logits come out, else padded.

    `changes`: the model's operations are not the same in every step, as with adapters. `exclusive`: nobody
    else uses the model. `kept`: where the recording of its forward is kept. `progress`: is told of a
    slow stage at its start. Raises ModelLoadError, saying why, for a model that it cannot run.
    """
    config = model.config.get_text_config()
    wish = ContextWish(
        slots=settings.engine_slots,
        asked=settings.engine_context_length,
        model_length=_model_length(config),
        memory_fraction=memory_fraction,
    )
    if settings.engine_runner != "padded":
        try:
            compiled = settings.engine_compile and not changes
            if settings.engine_int8:
                check_int8(model, compiled=compiled)
            return PackedRunner(
                model,
                wish,
                compiled=compiled,
                graphs=settings.engine_cuda_graphs and not changes,
                exclusive=exclusive,
                int8=settings.engine_int8,
                kept=kept,
                progress=progress,
            )
        except RunnerUnfit as error:
            if settings.engine_runner == "packed" or settings.engine_int8:
                raise
            log.info("it cannot run packed: %s", error.message)
    return PaddedRunner(model, wish, _length(config, ("max_decoder_position_embeddings",)))


def make_scheduler(
    runner: ModelRunner, settings: Settings, eos_token_ids: frozenset[int], *, constrained: bool = False
) -> Scheduler:
    """The scheduler whose batches this runner takes. `constrained`: the generation config changes logits."""
    limits: dict[str, Any] = {
        "slots": settings.engine_slots,
        "token_budget": settings.engine_token_budget,
        "context_length": runner.context_length,
        "completion_length": runner.completion_length,
        "eos_token_ids": eos_token_ids,
    }
    if isinstance(runner, PaddedRunner):
        return CohortScheduler(abilities=runner.abilities, **limits)
    return PackedScheduler(
        prefix_cache=settings.engine_prefix_cache,
        stretch=settings.engine_prefill_stretch,
        speculates=settings.engine_speculate and not constrained,
        **limits,
    )


def _model_length(config: PreTrainedConfig) -> int | None:
    """Positions that a text may take. Models with longrope turn to other factors beyond those that they were
    first trained on, for all of a pass at once: neighbours would change each other's tokens.
    """
    length = _length(config, LENGTH_NAMES)
    original = _longrope_length(getattr(config, "rope_parameters", None))
    original = original or getattr(config, "original_max_position_embeddings", None)
    if length is None or not _uses_longrope(config) or not isinstance(original, int):
        return length
    if original < length:
        log.warning(
            "the context is held to %d of %d positions, beyond which longrope changes all", original, length
        )
    return min(length, original)


def _uses_longrope(config: PreTrainedConfig) -> bool:
    return "longrope" in str(getattr(config, "rope_parameters", None))


def _longrope_length(parameters: Any) -> int | None:
    if not isinstance(parameters, dict):
        return None
    length = parameters.get("original_max_position_embeddings")
    return length if isinstance(length, int) else None


def _length(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    lengths = (getattr(config, name, None) for name in names)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)

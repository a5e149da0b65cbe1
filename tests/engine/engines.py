"""An engine over a tiny model, and the loop that empties it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from basaran_ops.engine.adapters import Adapters
from basaran_ops.engine.constraints import Constraints, decoder_start
from basaran_ops.engine.context_fit import ContextWish
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.recording_file import RecordingFile
from basaran_ops.engine.runners import choose_runner, make_scheduler
from basaran_ops.settings import Settings


def wish(slots: int = 8, *, model_length: int | None = 512, asked: int | None = None) -> ContextWish:
    return ContextWish(slots=slots, asked=asked, model_length=model_length, memory_fraction=0.1)


def engine_for(
    model: PreTrainedModel,
    *,
    slots: int = 8,
    token_budget: int = 24,
    eos: Iterable[int] = (),
    runner: str = "auto",
    adapters: Mapping[str, Path] | None = None,
    kept: RecordingFile | None = None,
    **others: Any,
) -> Engine:
    """An engine as the loader makes it; `others`: any other settings of the engine, by their names."""
    loaded = Adapters(model, adapters or {})
    settings = Settings(
        engine_slots=slots,
        engine_token_budget=token_budget,
        engine_runner=runner,  # type: ignore[arg-type]
        **others,
    )
    chosen = choose_runner(model, settings, 0.1, changes=bool(loaded.names), kept=kept)
    constraints = Constraints(model.generation_config, eos, decoder_start(model))
    scheduler = make_scheduler(chosen, settings, frozenset(eos), constrained=constraints.active)
    return Engine(chosen, scheduler, constraints, adapters=loaded)


def packed_engine(
    model: PreTrainedModel, *, slots: int = 8, token_budget: int = 24, eos: Iterable[int] = ()
) -> Engine:
    return engine_for(model, slots=slots, token_budget=token_budget, eos=eos, runner="packed")


def drain(engine: Engine) -> dict[int, list[int]]:
    """Step until nothing is left; the tokens of each sequence."""
    tokens: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.sequence_id, []).extend(output.token_ids)
    engine.check_idle()
    return tokens

"""An engine over a tiny model, and the loop that empties it."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from basaran_ops.engine.engine import Engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.scheduler import Scheduler


def packed_engine(
    model: PreTrainedModel, *, slots: int = 8, token_budget: int = 24, eos: Iterable[int] = ()
) -> Engine:
    runner = PackedRunner(model, slots=slots, context_length=None, model_length=512, memory_fraction=0.1)
    scheduler = Scheduler(
        slots=slots, token_budget=token_budget, context_length=runner.context_length, eos_token_ids=eos
    )
    return Engine(runner, scheduler)


def drain(engine: Engine) -> dict[int, list[int]]:
    """Step until nothing is left; the tokens of each sequence."""
    tokens: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.sequence_id, []).extend(output.token_ids)
    engine.check_idle()
    return tokens

from __future__ import annotations

import pytest

from basaran_ops.engine import padded_runner
from basaran_ops.engine.padded_runner import PaddedRunner
from basaran_ops.errors import ModelLoadError
from basaran_ops.sampling_params import SamplingParams

from ..architectures import tiny_architecture
from .engines import engine_for, wish


@pytest.mark.parametrize(
    ("name", "abilities", "drops"),
    [
        ("bloom", (True, True, True, True), True),
        ("bart", (True, True, False, True), True),
        ("mamba", (True, True, False, True), True),
        ("xlstm", (True, False, False, True), False),
        ("rwkv", (False, False, False, True), True),
        ("recurrent_gemma", (True, False, False, False), False),
        ("deepseek_v32", (True, False, False, True), True),
    ],
)
def test_probes_find_what_a_model_allows(
    name: str, abilities: tuple[bool, bool, bool, bool], drops: bool
) -> None:
    runner = PaddedRunner(tiny_architecture(name), wish(2))
    found = runner.abilities
    assert (found.batches, found.pads, found.chunks, found.interleaves) == abilities
    assert runner._drops is drops


def test_memory_bounds_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_architecture("bloom")
    config = model.config
    token = config.n_layer * 2 * config.hidden_size * 4
    monkeypatch.setattr(padded_runner, "available_bytes", lambda *devices: token * 2 * 10 * 700)
    # A tenth of it, for two slots, in steps of 256; the mask's and the ids' few bytes count too.
    assert PaddedRunner(model, wish(2, model_length=2048)).context_length == 512
    with pytest.raises(ModelLoadError, match="ENGINE_SLOTS=2 sequences of 900 tokens need"):
        PaddedRunner(model, wish(2, model_length=2048, asked=900))


def test_a_state_that_does_not_grow_costs_a_slot_the_same_however_long() -> None:
    runner = PaddedRunner(tiny_architecture("mamba"), wish(2, model_length=None, asked=10**6))
    assert runner.context_length == 10**6


def test_rows_that_ended_are_no_longer_computed() -> None:
    engine = engine_for(tiny_architecture("bart"))
    for number in range(4):
        engine.add(number, (5, 6, 7), SamplingParams(max_tokens=2 + number, temperature=0), None)
    rows = []
    while engine.has_work:
        engine.step()
        (cohort,) = engine._scheduler._cohorts
        rows.append(len(cohort.state.input_ids))
    assert rows == [4, 4, 3, 2, 1]


def test_nothing_is_kept_of_a_cohort_that_ended() -> None:
    engine = engine_for(tiny_architecture("bart"))
    for _ in range(2):
        engine.add(0, (5, 6, 7), SamplingParams(max_tokens=1, temperature=0), None)
        engine.step()
    assert len(engine._scheduler._cohorts) == 1

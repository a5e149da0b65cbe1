from __future__ import annotations

import pytest
import torch

from basaran_ops.engine import padded_runner
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.padded_runner import PaddedRunner
from basaran_ops.engine.runners import choose_runner, make_scheduler
from basaran_ops.engine.sequence import Batch
from basaran_ops.errors import ModelLoadError
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings

from ..architectures import tiny_architecture
from ..tiny_models import generate
from .engines import drain, engine_for, wish


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
    run = engine._runner.run

    def counting(batch: Batch) -> torch.Tensor:
        logits = run(batch)
        assert batch.cohort is not None
        rows.append(len(batch.cohort.state.input_ids))
        return logits

    engine._runner.run = counting  # type: ignore[method-assign]
    while engine.has_work:
        engine.step()
    assert rows == [4, 4, 3, 2, 1]


def test_nothing_is_kept_of_a_cohort_that_ended() -> None:
    engine = engine_for(tiny_architecture("bart"))
    engine.add(0, (5, 6, 7), SamplingParams(max_tokens=1, temperature=0), None)
    engine.step()
    assert not engine._scheduler._cohorts


@pytest.mark.parametrize("name", ["gpt_neo", "mpt", "openai-gpt", "roformer", "bloom"])
def test_no_row_grows_beyond_the_context_for_its_neighbours_sake(name: str) -> None:
    # Padded to the longest, a short prompt that wants many tokens would.
    free = tiny_architecture(name)
    settings = Settings(engine_slots=4, engine_token_budget=200, engine_context_length=64)
    runner = choose_runner(tiny_architecture(name), settings, 0.1)
    engine = Engine(runner, make_scheduler(runner, settings, frozenset()))
    prompts = [tuple(range(2, 2 + length)) for length in (1, 40, 7, 30)]
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, SamplingParams(max_tokens=64 - len(prompt), temperature=0), None)
    tokens = drain(engine)
    assert [tokens[n] for n in range(4)] == [generate(free, p, 64 - len(p)) for p in prompts]


@pytest.mark.parametrize("name", ["jamba", "zamba"])
def test_a_prompt_is_no_more_read_in_chunks_for_a_coarser_type(name: str) -> None:
    model = tiny_architecture(name).to(torch.bfloat16)
    assert not PaddedRunner(model, wish(2)).abilities.chunks


def test_stop_strings_and_healing_in_a_generation_config_are_not_for_us() -> None:
    model = tiny_architecture("bloom")
    model.generation_config.stop_strings = ["x"]
    model.generation_config.token_healing = True
    assert PaddedRunner(model, wish(2)).abilities.pads
    assert model.generation_config.stop_strings == ["x"], "it is the model's own again"


def test_prompts_of_which_nothing_is_wanted_harm_nobody() -> None:
    engine = engine_for(tiny_architecture("t5"))
    for number in range(2):
        engine.add(number, (5, 6, 7), SamplingParams(max_tokens=0), None)
    assert drain(engine) == {0: [], 1: []}

"""Guessed tokens are checked, and change nothing but how many steps it takes."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from basaran_ops.engine.drafts import LENGTHS, MOST_ROWS, Lookup
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.packed_scheduler import PackedScheduler
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import CONFIGS, VOCAB, generate, tiny_model
from .engines import drain, engine_for, packed_engine, wish

# -- guesses ---------------------------------------------------------------------------------------------


def test_what_followed_the_same_tokens_is_guessed() -> None:
    assert Lookup().draft([5, 6, 7, 8, 9, 1, 2, 5, 6, 7], 2) == (8, 9)


def test_the_last_time_counts() -> None:
    assert Lookup().draft([1, 2, 3, 40, 0, 1, 2, 3, 50, 0, 1, 2, 3], 1) == (50,)


def test_three_tokens_are_better_evidence_than_two() -> None:
    assert Lookup().draft([1, 2, 3, 40, 9, 2, 3, 50, 1, 2, 3], 1) == (40,)


def test_what_repeats_itself_is_taken_to_go_on() -> None:
    assert Lookup().draft([9, 4, 5, 4, 5], 4) == (4, 5, 4, 5)
    assert Lookup().draft([7, 7, 7], 3) == (7, 7, 7)


def test_nothing_is_guessed_from_nothing() -> None:
    for tokens in ([], [1], [1, 2], list(range(50))):
        assert Lookup().draft(tokens, 4) == ()


def test_guesses_grow_with_success_and_stop_with_failure() -> None:
    tokens, lookup = [1, 2, 3] * 30, Lookup()
    assert len(lookup.draft(tokens, 99)) == 4
    lookup.told(4, 4)
    assert len(lookup.draft(tokens, 99)) == 8
    lookup.told(8, 8)
    assert len(lookup.draft(tokens, 99)) == MOST_ROWS
    lookup.told(12, 5)
    assert len(lookup.draft(tokens, 99)) == 6
    for pause in (1, 3, 7, 15, 31, 31):
        lookup.told(6, 0)
        assert [len(lookup.draft(tokens, 99)) for _ in range(pause + 1)] == [0] * pause + [2]


def test_tokens_are_looked_up_as_they_come() -> None:
    """Against a search through all of them, from the end."""
    random, lookup, tokens = Random(1), Lookup(), []
    for _ in range(400):
        tokens.append(random.randrange(4))
        expected: tuple[int, ...] = ()
        for length in LENGTHS:
            places = [
                end for end in range(length, len(tokens)) if tokens[end - length : end] == tokens[-length:]
            ]
            if len(tokens) > length and places:
                expected = (tokens[places[-1]],)
                break
        assert lookup.draft(tokens, 1) == expected


# -- steps -----------------------------------------------------------------------------------------------


def repetitive(random: Random, length: int = 30) -> tuple[int, ...]:
    part = [random.randrange(VOCAB) for _ in range(5)]
    return tuple((part * length)[:length])


def steps_of(engine: Engine) -> tuple[dict[int, list[int]], int]:
    return drain(engine), engine.stats.step


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("streams", [1, 3])
def test_tokens_are_those_of_generate_in_fewer_steps(name: str, streams: int) -> None:
    model, random = tiny_model(name), Random(name)
    given = [repetitive(random) for _ in range(streams)]
    expected = [generate(model, prompt, 80) for prompt in given]
    engine = packed_engine(model, token_budget=64)
    for number, prompt in enumerate(given):
        engine.add(number, prompt, SamplingParams(max_tokens=80, temperature=0), None)
    tokens, steps = steps_of(engine)
    assert [tokens[number] for number in range(streams)] == expected
    assert engine.stats.drafted_tokens >= engine.stats.accepted_tokens
    if engine.stats.accepted_tokens:
        assert steps < 81 + streams


def loops() -> PreTrainedModel:
    """A model that says the same few tokens again and again."""
    return tiny_model("llama", num_hidden_layers=1)


def looping_engine(**kinds: Any) -> Engine:
    return engine_for(loops(), **{"token_budget": 64, "runner": "packed"} | kinds)


def run(engine: Engine, prompt: tuple[int, ...], **params: Any) -> tuple[list[int], Any]:
    engine.add(0, prompt, SamplingParams(**{"temperature": 0, "max_tokens": 60} | params), None)
    tokens, reason = [], None
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids
            reason = output.finish_reason or reason
    engine.check_idle()
    return tokens, reason


@cache
def looping_prompt() -> tuple[int, ...]:
    """A prompt whose completion repeats itself from the start."""
    for seed in range(50):
        prompt = repetitive(Random(seed))
        engine = looping_engine()
        run(engine, prompt)
        if engine.stats.accepted_tokens > 30:
            return prompt
    raise AssertionError("the model does not repeat itself")


def test_several_tokens_come_of_one_step() -> None:
    engine = looping_engine()
    engine.add(0, looping_prompt(), SamplingParams(max_tokens=60, temperature=0), None)
    sizes = []
    while engine.has_work:
        sizes += [len(output.token_ids) for output in engine.step()]
    assert sum(sizes) == 60
    assert max(sizes) > 2
    assert len(sizes) < 40


@pytest.mark.parametrize("limit", range(1, 24))
def test_the_limit_holds_within_a_guess(limit: int) -> None:
    prompt = looping_prompt()
    tokens, reason = run(looping_engine(), prompt, max_tokens=limit)
    assert (tokens, reason) == (generate(loops(), prompt, limit), "length")


def test_a_stop_token_within_a_guess_ends_it() -> None:
    prompt = looping_prompt()
    whole = generate(loops(), prompt, 60)
    for place in range(5, 25):
        stop = whole[place]
        expected = whole[: whole.index(stop) + 1]
        tokens, reason = run(looping_engine(), prompt, stop_token_ids=(stop,))
        assert (tokens, reason) == (expected, "stop")
        tokens, reason = run(looping_engine(eos=[stop]), prompt)
        assert (tokens, reason) == (expected, "stop")


def test_the_context_is_not_overrun() -> None:
    whole = loops()
    prompts = [repetitive(Random(seed)) for seed in range(30)]
    expected = [generate(whole, prompt, 18) for prompt in prompts]
    engine = packed_engine(tiny_model("llama", num_hidden_layers=1, max_position_embeddings=48))
    for prompt, wanted in zip(prompts, expected, strict=True):
        tokens, reason = run(engine, prompt, max_tokens=100)
        assert (tokens, reason) == (wanted, "length")


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0, "seed": 3},
        {"frequency_penalty": 0.1},
        {"presence_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": ((5, 1.0),)},
        {"min_tokens": 10},
        {"logprobs": 2},
    ],
)
def test_nothing_is_guessed_where_more_than_the_likeliest_token_matters(params: dict[str, Any]) -> None:
    engine = looping_engine()
    run(engine, looping_prompt(), **params)
    assert engine.stats.drafted_tokens == 0


def test_nothing_is_guessed_where_many_run() -> None:
    engine = looping_engine(slots=16, token_budget=600)
    for number in range(MOST_ROWS):
        engine.add(number, looping_prompt(), SamplingParams(max_tokens=40, temperature=0), None)
    drain(engine)
    assert engine.stats.drafted_tokens == 0


def test_rows_of_a_step_stay_few() -> None:
    engine = looping_engine(slots=16, token_budget=600)
    for number in range(5):
        engine.add(number, looping_prompt(), SamplingParams(max_tokens=40, temperature=0), None)
    while engine.has_work:
        engine.step()
        if not engine.stats.batch_tokens > MOST_ROWS:
            continue
        assert engine.stats.step <= 1, "only the prompts are more"
    assert engine.stats.accepted_tokens > 0


def test_a_setting_turns_it_off() -> None:
    engine = looping_engine(engine_speculate=False)
    run(engine, looping_prompt())
    assert engine.stats.drafted_tokens == 0


def test_drafts_are_attended_alike_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basaran_ops.engine.kernels.available", False)
    prompt = looping_prompt()
    tokens, _ = run(looping_engine(), prompt)
    assert tokens == generate(loops(), prompt, 60)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "gemma2"])
def test_in_bfloat16_guessed_tokens_are_what_they_would_have_been(name: str) -> None:
    """Compiled, a row's logits do not depend on the rows beside it."""
    said = []
    for speculates in (True, False):
        model = tiny_model(name, head_dim=32, num_hidden_layers=1).to(torch.bfloat16)
        scheduler = PackedScheduler(
            slots=8, token_budget=64, context_length=512, eos_token_ids=(), speculates=speculates
        )
        engine = Engine(PackedRunner(model, wish(), compiled=True), scheduler)
        said.append([run(engine, repetitive(Random(seed)), max_tokens=120)[0] for seed in range(6)])
        assert (engine.stats.accepted_tokens > 20) == speculates
    assert said[0] == said[1]

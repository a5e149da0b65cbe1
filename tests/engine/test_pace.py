"""A step that reads prompts stays within a multiple of one that only decodes."""

from __future__ import annotations

import pytest

from basaran_ops.engine.pace import FIRST_GUESS, LEAST, Pace


def seconds(rows: int, prompt_tokens: int) -> float:
    """A machine on which a step takes 10 ms, 1 ms more a row and half of one a prompt token."""
    return (0.010 if rows else 0.0) + 0.001 * rows + 0.0005 * prompt_tokens


def learnt(stretch: float, rows: int) -> Pace:
    pace = Pace(stretch)
    for _ in range(40):
        pace.observe(rows, 0, seconds(rows, 0))
        tokens = pace.prompt_tokens(rows, 512)
        pace.observe(rows, tokens, seconds(rows, tokens))
    return pace


@pytest.mark.parametrize("rows", [1, 4, 32])
@pytest.mark.parametrize("stretch", [1.5, 2.5, 4])
def test_the_longest_step_is_the_shortest_times_the_stretch(rows: int, stretch: float) -> None:
    tokens = learnt(stretch, rows).prompt_tokens(rows, 10_000)
    longest = seconds(rows, tokens)
    assert longest == pytest.approx(stretch * seconds(rows, 0), rel=0.05) or tokens == LEAST


def test_each_of_many_prompts_may_stretch_a_step() -> None:
    pace = learnt(2.5, 4)
    one = pace.prompt_tokens(4, 10_000)
    assert pace.prompt_tokens(4, 10_000, prompts=3) == pytest.approx(3 * one, abs=3)
    assert pace.prompt_tokens(4, 2 * one, prompts=3) == 2 * one


def test_nothing_decodes_and_a_step_is_as_large_as_it_may_be() -> None:
    assert learnt(2.5, 4).prompt_tokens(0, 512) == 512


def test_before_anything_is_known_a_step_is_small() -> None:
    assert Pace(2.5).prompt_tokens(3, 512) == FIRST_GUESS
    assert Pace(2.5).prompt_tokens(3, 20) == 20


def test_steps_that_only_read_tell_what_a_prompt_token_costs() -> None:
    pace = Pace(2.0)
    pace.observe(0, 100, 0.1)
    pace.observe(1, 0, 0.05)
    assert pace.prompt_tokens(1, 512) == 50


def test_what_is_seen_beside_streams_counts_more_than_steps_that_only_read() -> None:
    pace = learnt(2.5, 4)
    before = pace.prompt_tokens(4, 512)
    pace.observe(0, 512, 5.0)
    assert pace.prompt_tokens(4, 512) == before


def test_a_number_of_rows_never_seen_is_taken_for_its_neighbour() -> None:
    pace = learnt(2.5, 4)
    assert pace.prompt_tokens(9, 512) == pace.prompt_tokens(4, 512)


def test_where_prompts_cost_nothing_the_budget_is_the_bound() -> None:
    pace = Pace(2.5)
    pace.observe(1, 0, 0.01)
    pace.observe(1, 64, 0.009)
    assert pace.prompt_tokens(1, 512) == 512


def test_a_prompt_always_moves_on() -> None:
    pace = Pace(1.1)
    pace.observe(1, 0, 0.001)
    pace.observe(0, 10, 1.0)
    assert pace.prompt_tokens(1, 512) == LEAST
    assert pace.prompt_tokens(1, 3) == 3


def test_one_slow_step_does_not_decide() -> None:
    pace = learnt(2.5, 4)
    before = pace.prompt_tokens(4, 512)
    pace.observe(4, 0, 10 * seconds(4, 0))
    assert pace.prompt_tokens(4, 512) < 4 * before
    for _ in range(30):
        pace.observe(4, 0, seconds(4, 0))
    assert pace.prompt_tokens(4, 512) == pytest.approx(before, rel=0.05)

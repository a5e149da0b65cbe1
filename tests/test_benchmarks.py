"""The arithmetic of the benchmarks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from benchmarks.compare import capacity
from benchmarks.figures import growth, median, quantile
from benchmarks.growth import square_share
from benchmarks.interference import BEFORE, figures, gaps_within
from benchmarks.load import IGNORE_EOS, Stream, add_targets, targets
from benchmarks.startup import PARTS, import_seconds, split


@dataclass(frozen=True)
class Run:
    tokens: float
    seconds: float


def test_a_median_is_taken_of_each_figure_by_itself() -> None:
    assert median([Run(1, 30), Run(3, 10), Run(2, 20)]) == Run(2, 20)


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 51), (0.95, 96), (1, 100)])
def test_a_quantile_is_one_of_the_values(share: float, expected: float) -> None:
    assert quantile(list(range(100, 0, -1)), share) == expected


SIZES = (10, 20, 40, 80, 160, 320)


def test_a_line_is_found_and_grows_no_faster_than_its_sizes() -> None:
    grown = growth(SIZES, [3 + 2 * size for size in SIZES])
    assert grown.coefficients == pytest.approx((3, 2))
    assert grown.error < 1e-9
    assert grown.r_squared == pytest.approx(1)
    assert 0.9 < grown.exponent <= 1


def test_a_square_is_found_where_it_is_looked_for_and_told_where_not() -> None:
    costs = [1 + 2 * size + 0.5 * size**2 for size in SIZES]
    assert growth(SIZES, costs, square=True).coefficients == pytest.approx((1, 2, 0.5))
    alone = growth(SIZES, costs)
    assert alone.error > 0.1
    assert alone.exponent > 1.8


def test_a_cost_that_stays_has_no_exponent() -> None:
    assert growth(SIZES, [7.0] * len(SIZES)).exponent == pytest.approx(0)


def test_the_share_of_the_square_is_of_the_whole_cost() -> None:
    assert square_share(10, (100.0, 20.0, 1.0)) == pytest.approx(100 / (100 + 200 + 100))


def test_gaps_are_taken_between_two_moments_once_all_streams_are_there() -> None:
    stream = Stream(started=100.0, events=[float(n) for n in range(BEFORE + 20)])
    assert len(gaps_within([stream], 0, 100.0 + BEFORE)) == BEFORE - BEFORE // 2
    assert len(gaps_within([stream, stream], 100.0 + BEFORE, 100.0 + BEFORE + 10)) == 20


def test_a_stream_that_is_slower_beside_a_prompt_is_told_by_how_much() -> None:
    quick, slow = [0.25 * n for n in range(BEFORE + 1)], 0.5
    running = Stream(started=100.0, events=quick + [quick[-1] + slow * n for n in range(1, 11)])
    long = Stream(started=100.0 + quick[-1], events=[10 * slow])
    measured = figures([running], long)
    assert (measured.before_p50, measured.before_p99) == (0.25, 0.25)
    assert (measured.beside_p50, measured.beside_p99) == (0.5, 0.5)
    assert (measured.ratio_p50, measured.ratio_p95) == (2, 2)
    assert measured.first_token == 5


def test_other_servers_are_named_with_their_own_fields() -> None:
    parser = argparse.ArgumentParser()
    add_targets(parser)
    options = parser.parse_args(
        ["--against", "a=http://a:1/", "--against", "b=http://b:2?x=y", "--fields", 'b={"min_tokens": 8}']
    )
    a, b = targets(options)
    assert (a.name, a.url, a.model, a.fields) == ("a", "http://a:1", "default", IGNORE_EOS)
    assert (b.name, b.url, b.fields) == ("b", "http://b:2?x=y", {"min_tokens": 8})


def test_clients_beyond_the_slots_wait_and_none_is_refused() -> None:
    assert capacity(4, None) == {"ENGINE_SLOTS": "4", "SERVER_QUEUE_LIMIT": "64"}
    assert capacity(256, None) == {"ENGINE_SLOTS": "32", "SERVER_QUEUE_LIMIT": "256"}
    assert capacity(256, 128) == {"ENGINE_SLOTS": "128", "SERVER_QUEUE_LIMIT": "256"}


def test_a_part_of_a_start_ends_with_its_words_in_the_log() -> None:
    words = list(PARTS.values())
    lines = [(0.5, "something else")]
    lines += [(float(2**number), f"engine 0: {text} and more") for number, text in enumerate(words)]
    parts = split(iter([*lines, (1e9, "never read")]))
    assert list(parts) == list(PARTS)
    assert list(parts.values()) == [1, 1, 2, 4, 8, 16, 32]


def test_a_start_that_ends_early_is_told_with_what_it_did_not_come_to() -> None:
    with pytest.raises(RuntimeError, match="loading"):
        split([(1.0, "Listening at"), (2.0, "engine 0: importing torch"), (3.0, "no such file")])


def test_import_times_are_summed_over_the_modules_of_a_package() -> None:
    trace = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:    250000 |     250000 |   torch._C\n"
        "import time:    500000 |     750000 | torch\n"
        "a warning\n"
        "import time:      1000 |     751000 | basaran_ops\n"
    )
    assert import_seconds(trace) == {"torch": 0.75, "basaran_ops": 0.001}

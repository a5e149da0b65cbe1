from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from basaran_ops.engine import sampler
from basaran_ops.engine.sampler import BLOCK, CANDIDATES, MORE, Sampler
from basaran_ops.engine.sequence import Sequence
from basaran_ops.sampling_params import SamplingParams


def sequences(*params: SamplingParams, seed: int = 0) -> list[Sequence]:
    return [Sequence(number, (1,), p, seed + number) for number, p in enumerate(params)]


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """transformers' own warpers, in our order."""
    warpers = [TemperatureLogitsWarper(params.temperature)]
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    for warper in warpers:
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("vocab", [50, 5000])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=5),
        SamplingParams(top_k=4999),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.998),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=1.5, min_p=0.02, top_k=30, top_p=0.8),
        SamplingParams(temperature=2.0, top_p=0.99),
        SamplingParams(top_p=1e-9),
    ],
    ids=str,
)
def test_what_can_be_sampled_is_what_transformers_would_keep(vocab: int, params: SamplingParams) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(6, vocab) * 2
    kept = sampler._truncate(logits.clone(), sequences(*[params] * 6))
    expected = reference(logits.clone(), params)
    assert torch.equal(kept.isinf(), expected.isinf())
    torch.testing.assert_close(kept, expected)


def test_the_smallest_set_that_reaches_top_p_is_found_however_many_tokens_it_has() -> None:
    torch.manual_seed(3)
    spreads = torch.tensor([8.0, 0.1, 1.0, 3.0, 0.1, 2.0], dtype=torch.float64)
    params = [SamplingParams(top_p=p) for p in (0.9, 0.999, 0.6, 0.95, 0.2, 0.99)]
    logits = torch.randn(6, 20_000, dtype=torch.float64) * spreads[:, None]
    kept = sampler._truncate(logits.clone(), sequences(*params))
    counts = kept.isfinite().sum(dim=-1).tolist()
    for row, param in enumerate(params):
        assert torch.equal(kept[row : row + 1], reference(logits[row : row + 1], param))
    # Some were found in each round.
    rounds = [sum(count > size for size in (0, CANDIDATES, MORE * CANDIDATES)) for count in counts]
    assert set(rounds) == {1, 2, 3}, counts


@pytest.mark.parametrize("vocab", [127, BLOCK, 5 * BLOCK, 40 * BLOCK + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_likeliest_is_the_first_of_the_highest(vocab: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab)
    # Few values, so that many are the highest.
    logits = torch.randint(-3, 4, (50, vocab)).to(dtype)
    logits[7] = float("-inf")
    logits[8, vocab // 2] = float("nan")
    expected = [next(i for i, v in enumerate(row) if v == max(row)) for row in logits.nan_to_num(99).tolist()]
    assert sampler.likeliest(logits).tolist() == expected


def test_a_row_is_treated_alike_whatever_its_neighbours_ask() -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 2000)
    params = [
        SamplingParams(temperature=0),
        SamplingParams(top_k=3),
        SamplingParams(),
        SamplingParams(top_p=0.3, temperature=0.5),
        SamplingParams(min_p=0.2),
    ]
    together = Sampler().sample(logits.clone(), sequences(*params))
    for row, param in enumerate(params):
        alone = [Sequence(row, (1,), param, row)]
        assert Sampler().sample(logits[row : row + 1].clone(), alone) == [together[row]]


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(top_p=0), SamplingParams(top_k=1)], ids=str
)
def test_temperature_0_and_top_p_0_are_argmax(params: SamplingParams) -> None:
    logits = torch.randn(3, 100)
    assert Sampler().sample(logits, sequences(params, params, params)) == logits.argmax(-1).tolist()


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    sequence = sequences(SamplingParams(), seed=7)
    counts = Counter(Sampler().sample(logits.clone(), sequence)[0] for _ in range(8000))
    expected = [800, 1600, 2400, 3200]
    # Chi-square with 3 degrees of freedom: above 16.3 once in a thousand seeds, and the seed is fixed.
    assert sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected)) < 16.3


@given(st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=40), st.integers(0, 2**32))
def test_a_token_without_mass_is_never_drawn(values: list[float], seed: int) -> None:
    logits = torch.tensor([[*values, float("-inf")]])
    for _ in range(5):
        (token,) = Sampler().sample(logits.clone(), sequences(SamplingParams(), seed=seed))
        assert token < len(values)


def test_the_largest_number_still_points_at_a_token() -> None:
    class Largest:
        def getrandbits(self, bits: int) -> int:
            return 2**bits - 1

    sequence = sequences(SamplingParams())[0]
    sequence.random = Largest()  # type: ignore[assignment]
    logits = torch.full((1, 1000), float("-inf"))
    logits[0, :300] = torch.randn(300)
    assert Sampler().sample(logits, [sequence])[0] < 300

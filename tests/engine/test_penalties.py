"""Biases and penalties equal the formula, computed apart."""

from __future__ import annotations

import pytest
import torch

from basaran_ops.engine.sampler import Sampler
from basaran_ops.engine.sequence import Sequence
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import generate, tiny_model
from .engines import drain, packed_engine

PROMPT, OUTPUT = (1, 2, 3), (3, 4, 4, 4)


def adjusted(params: SamplingParams, logits: torch.Tensor, eos: tuple[int, ...] = (0,)) -> torch.Tensor:
    sequence = Sequence(0, PROMPT, params, 0)
    for token in OUTPUT:
        sequence.append(token)
    before = logits.clone()
    result = Sampler(eos)._adjust(logits, [sequence])
    assert torch.equal(logits, before), "the model's own logits were changed"
    return result


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.tensor([[1.0, -1.0, 2.0, -2.0, 3.0, 0.5, -0.5]])


def test_frequency_counts_and_presence_does_not(logits: torch.Tensor) -> None:
    result = adjusted(SamplingParams(frequency_penalty=0.5, presence_penalty=0.25), logits)
    expected = logits.clone()
    expected[0, 3] -= 1 * 0.5 + 0.25
    expected[0, 4] -= 3 * 0.5 + 0.25
    torch.testing.assert_close(result, expected)


def test_repetition_covers_prompt_and_output_once(logits: torch.Tensor) -> None:
    result = adjusted(SamplingParams(repetition_penalty=2.0), logits)
    torch.testing.assert_close(result, torch.tensor([[1.0, -2.0, 1.0, -4.0, 1.5, 0.5, -0.5]]))


def test_bias_comes_before_the_penalties(logits: torch.Tensor) -> None:
    params = SamplingParams(logit_bias=((4, -5.0), (6, 10.0)), repetition_penalty=2.0, frequency_penalty=1.0)
    result = adjusted(params, logits)
    # Token 4: 3 - 5 = -2, repeated: -4, three times: -7.
    torch.testing.assert_close(result[0, 4], torch.tensor(-7.0))
    torch.testing.assert_close(result[0, 6], torch.tensor(9.5))


@pytest.mark.parametrize(
    ("ignore_eos", "expected"), [(False, {0, 5}), (True, {5})], ids=["eos ends", "eos is ignored"]
)
def test_until_min_tokens_nothing_that_ends_can_be_chosen(
    logits: torch.Tensor, ignore_eos: bool, expected: set[int]
) -> None:
    params = SamplingParams(min_tokens=5, stop_token_ids=(5,), ignore_eos=ignore_eos)
    hidden = adjusted(params, logits)[0].isinf().nonzero()[:, 0].tolist()
    assert set(hidden) == expected
    assert not adjusted(SamplingParams(min_tokens=4, stop_token_ids=(5,)), logits).isinf().any()


def test_a_row_pays_only_for_what_it_asks(logits: torch.Tensor) -> None:
    sequence = Sequence(0, PROMPT, SamplingParams(), 0)
    assert Sampler()._adjust(logits, [sequence]) is logits


def test_a_sequence_that_ignores_eos_goes_on_and_one_with_a_stop_token_ends_there() -> None:
    model = tiny_model("llama")
    tokens = generate(model, (5, 6, 7), 12)
    engine = packed_engine(model, eos=[tokens[2]])
    greedy = {"max_tokens": 12, "temperature": 0}
    engine.add(0, (5, 6, 7), SamplingParams(**greedy), None)
    engine.add(1, (5, 6, 7), SamplingParams(**greedy, ignore_eos=True), None)
    engine.add(2, (5, 6, 7), SamplingParams(**greedy, ignore_eos=True, stop_token_ids=(tokens[5],)), None)
    got = drain(engine)
    assert got[0] == tokens[: tokens.index(tokens[2]) + 1]
    assert got[1] == tokens
    assert got[2] == tokens[: tokens.index(tokens[5]) + 1]

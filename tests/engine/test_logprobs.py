"""Log-probabilities equal transformers' own, whatever the chunks and neighbours."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from transformers import PreTrainedModel

from basaran_ops.engine import scheduler as scheduler_module
from basaran_ops.engine.engine import Engine
from basaran_ops.outputs import TokenLogprob
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import VOCAB, tiny_model
from .engines import packed_engine


def direct(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Log-softmax [len(tokens), vocab] of the logits after each token."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)


def run(
    engine: Engine,
) -> tuple[dict[int, list[int]], dict[int, list[TokenLogprob]], dict[int, list[TokenLogprob]]]:
    tokens: dict[int, list[int]] = {}
    new: dict[int, list[TokenLogprob]] = {}
    prompt: dict[int, list[TokenLogprob]] = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.sequence_id, []).extend(output.token_ids)
            new.setdefault(output.sequence_id, []).extend(output.logprobs)
            prompt.setdefault(output.sequence_id, []).extend(output.prompt_logprobs)
    engine.check_idle()
    return tokens, new, prompt


@pytest.mark.parametrize("scored", [128, 5], ids=["whole", "in chunks"])
def test_prompt_and_completion_logprobs_equal_a_direct_computation(
    scored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "SCORED_TOKENS", scored)
    random = Random(3)
    model = tiny_model("llama")
    engine = packed_engine(model)
    prompts = [[random.randrange(VOCAB) for _ in range(length)] for length in (1, 2, 7, 30, 61)]
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=6, temperature=1.3, logprobs=number, prompt_logprobs=True)
        engine.add(number, tuple(prompt), params, number)
    # A neighbour that asks for nothing gets nothing.
    engine.add(9, (4, 5, 6), SamplingParams(max_tokens=9), 1)
    tokens, new, scores = run(engine)
    assert new[9] == scores[9] == []
    for number, prompt in enumerate(prompts):
        whole = prompt + tokens[number]
        expected = direct(model, whole)
        told = scores[number] + new[number]
        assert [one.token_id for one in told] == whole[1:]
        for position, one in enumerate(told):
            assert one.logprob == pytest.approx(expected[position, one.token_id].item(), abs=1e-4)
            best = expected[position].topk(number)
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            # The very same number where the token is among the likeliest: clients compare with ==.
            assert dict(one.top).get(one.token_id, one.logprob) == one.logprob


def test_nothing_is_generated_when_only_the_prompt_is_scored() -> None:
    model = tiny_model("llama")
    engine = packed_engine(model)
    params = SamplingParams(max_tokens=0, logprobs=1, prompt_logprobs=True)
    engine.add(0, tuple(range(40)), params, None)
    tokens, _, scores = run(engine)
    assert tokens == {0: []}
    expected = direct(model, list(range(40)))
    assert [s.logprob for s in scores[0]] == pytest.approx(
        [expected[i, i + 1].item() for i in range(39)], abs=1e-4
    )


def test_logprobs_are_the_models_own_whatever_changes_the_choice() -> None:
    model = tiny_model("llama")
    engine = packed_engine(model)
    params = SamplingParams(
        max_tokens=5, temperature=0, logprobs=1, logit_bias=((7, 100.0),), presence_penalty=1.0
    )
    engine.add(0, (4, 5, 6), params, None)
    tokens, new, _ = run(engine)
    assert tokens[0] == [7] * 5
    expected = direct(model, [4, 5, 6, *tokens[0]])
    assert [s.logprob for s in new[0]] == pytest.approx(
        [expected[2 + i, 7].item() for i in range(5)], abs=1e-4
    )


def test_a_full_context_can_be_scored() -> None:
    engine = packed_engine(tiny_model("llama"))
    prompt = tuple(i % VOCAB for i in range(512))
    engine.add(0, prompt, SamplingParams(max_tokens=0, logprobs=0, prompt_logprobs=True), None)
    _, _, scores = run(engine)
    assert len(scores[0]) == 511
    assert all(math.isfinite(s.logprob) and s.top == () for s in scores[0])

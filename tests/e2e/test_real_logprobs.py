"""The default model's log-probabilities over HTTP equal those that transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from basaran_ops.text.tokenizer import Tokenizer

from ..running_server import running_server

TEXT = (
    "Paris is the capital of France. In 2024 it held the Olympic Games. 北京是中国的首都。 "
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n"
) * 4


@pytest.mark.parametrize("max_tokens", [0, 12])
def test_prompt_and_completion_logprobs_within_1e_4(
    max_tokens: int, default_model_path: Path, tmp_path: Path
) -> None:
    with running_server(
        tmp_path / "log",
        MODEL=str(default_model_path),
        MODEL_DTYPE="float32",
        ENGINE_SLOTS="4",
        ENGINE_CONTEXT_LENGTH="1024",
        ENGINE_TOKEN_BUDGET="96",
    ) as server:
        server.wait_ready()
        ids = Tokenizer.load(str(default_model_path)).encode(TEXT)
        response = server.complete(
            prompt=[ids, ids[:50]], max_tokens=max_tokens, echo=True, logprobs=2, temperature=0
        ).json()
    model = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32).eval()
    for choice, prompt in zip(response["choices"], (ids, ids[:50]), strict=True):
        told = choice["logprobs"]
        with torch.inference_mode():
            whole = torch.tensor([prompt])
            if max_tokens:
                whole = model.generate(
                    whole, attention_mask=torch.ones_like(whole), max_new_tokens=max_tokens, do_sample=False
                )
            expected = torch.log_softmax(model(whole).logits[0], -1)
        tokens = whole[0].tolist()
        assert len(told["token_logprobs"]) == len(tokens)
        direct = [expected[i, token].item() for i, token in enumerate(tokens[1:])]
        assert told["token_logprobs"][1:] == pytest.approx(direct, abs=1e-4)
        best = expected[:-1].max(-1).values.tolist()
        assert [max(top.values()) for top in told["top_logprobs"][1:]] == pytest.approx(best, abs=1e-4)

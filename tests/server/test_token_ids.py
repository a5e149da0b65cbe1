"""`return_token_ids`: which tokens an answer and its prompt are, so that one can go on from any of them."""

from __future__ import annotations

from typing import Any

import pytest

from ..running_server import RunningServer
from ..tiny_models import VOCAB
from .test_api import error, events

ASKED: dict[str, Any] = {"prompt": "the cat", "max_tokens": 12, "seed": 5, "return_token_ids": True}


def ids_of(server: RunningServer, text: str) -> list[int]:
    ids: list[int] = server.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return ids


@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("echo", [False, True])
def test_a_completions_ids_are_its_own_and_its_prompts(
    tiny_server: RunningServer, logprobs: int | None, echo: bool
) -> None:
    (choice,) = tiny_server.complete(**ASKED, logprobs=logprobs, echo=echo).json()["choices"]
    assert choice["prompt_token_ids"] == ids_of(tiny_server, "the cat")
    assert len(choice["token_ids"]) == 12
    text = tiny_server.http.post("/detokenize", json={"tokens": choice["token_ids"]}).json()["prompt"]
    assert choice["text"].removeprefix("the cat" if echo else "") == text


def test_a_stream_tells_the_prompts_ids_once_and_the_same_ids_of_the_text(tiny_server: RunningServer) -> None:
    asked = ASKED | {"n": 2, "prompt": ["the cat", "a hat"]}
    whole = tiny_server.complete(**asked).json()["choices"]
    ids: dict[int, list[int]] = {}
    prompts: dict[int, list[int]] = {}
    for event in events(tiny_server.complete(**asked, stream=True)):
        (choice,) = event["choices"]
        index = choice["index"]
        assert ("prompt_token_ids" in choice) == (index not in prompts)
        prompts.setdefault(index, choice.get("prompt_token_ids"))
        ids.setdefault(index, []).extend(choice["token_ids"])
    assert ids == {choice["index"]: choice["token_ids"] for choice in whole}
    assert prompts == {choice["index"]: choice["prompt_token_ids"] for choice in whole}
    assert prompts[2] == prompts[3] == ids_of(tiny_server, "a hat")


def test_best_of_tells_the_ids_of_the_best(tiny_server: RunningServer) -> None:
    asked = ASKED | {"prompt": ["the cat", "a hat"], "n": 1, "best_of": 3}
    choices = tiny_server.complete(**asked).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [
        ids_of(tiny_server, "the cat"),
        ids_of(tiny_server, "a hat"),
    ]


def test_alternatives_have_ids_that_stand_for_their_texts(tiny_server: RunningServer) -> None:
    (choice,) = tiny_server.complete(**ASKED, logprobs=4, temperature=0).json()["choices"]
    logprobs = choice["logprobs"]
    for position, chosen in enumerate(choice["token_ids"]):
        likeliest, ids = logprobs["top_logprobs"][position], logprobs["top_token_ids"][position]
        assert likeliest.keys() == ids.keys()
        assert ids[max(likeliest, key=likeliest.__getitem__)] == chosen
        for text, token in ids.items():
            if "\ufffd" not in text:
                alone = tiny_server.http.post("/detokenize", json={"tokens": [token]}).json()["prompt"]
                assert alone in (text, ""), "a special token has a name and no text"


def test_an_answer_goes_on_from_any_of_its_tokens_as_it_did(tiny_server: RunningServer) -> None:
    asked = ASKED | {"temperature": 0}
    (choice,) = tiny_server.complete(**asked).json()["choices"]
    for kept in (1, 5, 11):
        prompt = choice["prompt_token_ids"] + choice["token_ids"][:kept]
        again = tiny_server.complete(**asked | {"prompt": prompt, "max_tokens": 12 - kept}).json()
        assert again["choices"][0]["token_ids"] == choice["token_ids"][kept:]


def test_without_the_flag_nothing_tells_of_ids(tiny_server: RunningServer) -> None:
    for asked in (ASKED | {"return_token_ids": False}, ASKED | {"return_token_ids": None}):
        (choice,) = tiny_server.complete(**asked, logprobs=1).json()["choices"]
        assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
        assert "top_token_ids" not in choice["logprobs"]


def test_the_flag_is_a_boolean(tiny_server: RunningServer) -> None:
    assert error(tiny_server.complete(prompt="x", return_token_ids=1), 400)["param"] == "return_token_ids"


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31, 2**63, 2**80, True, 1.5, None], ids=str)
def test_an_id_that_the_vocabulary_has_not_is_400_by_name(tiny_server: RunningServer, token: object) -> None:
    for prompt in ([token], [5, token], [[5], [5, token]], [[token]]):
        assert error(tiny_server.complete(prompt=prompt, max_tokens=1), 400)["param"] == "prompt"
    stopped = error(tiny_server.complete(prompt="a", max_tokens=1, stop_token_ids=[token]), 400)
    assert stopped["param"] in ("stop_token_ids", "stop_token_ids[0]")


@pytest.mark.parametrize("token", ["-1", str(VOCAB), str(2**40), str(2**80), "1.5", "true", "", "abc"])
def test_a_bias_for_no_token_is_400_by_name(tiny_server: RunningServer, token: str) -> None:
    refused = error(tiny_server.complete(prompt="a", max_tokens=1, logit_bias={token: 1}), 400)
    assert refused["param"] == "logit_bias"

"""What Basaran 0.21.1 got wrong must not come back: one test each, over HTTP."""

from __future__ import annotations

import itertools
import math
import re
import time
from typing import Any

import pytest

from ..running_server import RunningServer
from .test_api import error, events

PROMPT = "the cat sat"


def ids(server: RunningServer, text: str) -> list[int]:
    tokens: list[int] = server.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return tokens


def test_an_echoed_prompt_is_not_counted_as_completion(tiny_server: RunningServer) -> None:
    usage = tiny_server.complete(prompt=PROMPT, max_tokens=3, echo=True).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids(tiny_server, PROMPT)), 3)


def test_a_prompts_logprobs_are_no_made_up_zeros(tiny_server: RunningServer) -> None:
    told = tiny_server.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=0).json()["choices"][0]
    first, *others = told["logprobs"]["token_logprobs"]
    assert first is None
    assert others
    assert all(-math.inf < value < 0 for value in others)


def test_logprobs_0_is_not_null(tiny_server: RunningServer) -> None:
    told = tiny_server.complete(prompt=PROMPT, max_tokens=2, logprobs=0).json()["choices"][0]["logprobs"]
    assert [len(top) for top in told["top_logprobs"]] == [1, 1]


def test_max_tokens_0_generates_nothing_at_all(tiny_server: RunningServer) -> None:
    body = tiny_server.complete(prompt=PROMPT, max_tokens=0).json()
    assert (body["choices"][0]["text"], body["usage"]["completion_tokens"]) == ("", 0)


def test_a_prompt_of_token_ids_is_answered_as_its_text_is(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    text = tiny_server.complete(prompt=PROMPT, **fields).json()["choices"][0]["text"]
    given = ids(tiny_server, PROMPT)
    assert tiny_server.complete(prompt=given, **fields).json()["choices"][0]["text"] == text
    both = tiny_server.complete(prompt=[given, given], **fields).json()["choices"]
    assert [choice["text"] for choice in both] == [text, text]


def test_several_prompts_are_answered_each(tiny_server: RunningServer) -> None:
    prompts = ["the cat", "a hat", "the rat"]
    fields: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    together = [c["text"] for c in tiny_server.complete(prompt=prompts, **fields).json()["choices"]]
    alone = [tiny_server.complete(prompt=p, **fields).json()["choices"][0]["text"] for p in prompts]
    assert together == alone


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": "5"}, {"n": 1.5}, {"temperature": "hot"}, {"stop": 5}, {"echo": "yes"}], ids=str
)
def test_a_wrong_type_is_not_dropped_in_silence(tiny_server: RunningServer, wrong: dict[str, Any]) -> None:
    assert error(tiny_server.complete(prompt=PROMPT, **wrong), 400)["param"] in wrong


@pytest.mark.parametrize("body", [b"prompt=hello", b"", b"hello", b'{"prompt": "x"'])
def test_a_body_that_is_not_json_is_no_unprompted_completion(tiny_server: RunningServer, body: bytes) -> None:
    error(tiny_server.http.post("/v1/completions", content=body), 400)


def test_a_prompt_beyond_the_context_is_refused_and_never_cut(tiny_server: RunningServer) -> None:
    for prompt in ("x" * 1000, "x" * 40000):
        refused = error(tiny_server.complete(prompt=prompt, max_tokens=1), 400)
        assert refused["code"] == "context_length_exceeded"
        # Beyond 32,768 characters, at which Basaran cut, the length is told without encoding the text.
        said = re.search(r"your prompt has (at least )?(\d+) tokens", refused["message"])
        assert said is not None
        assert 512 < int(said[2]) <= len(ids(tiny_server, prompt))


def test_a_stream_can_tell_its_usage(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4, "seed": 1}
    last = events(tiny_server.complete(**fields, stream=True, stream_options={"include_usage": True}))[-1]
    plain = tiny_server.complete(**fields).json()["usage"]
    del last["usage"]["prompt_tokens_details"], plain["prompt_tokens_details"]
    assert last["usage"] == plain


def test_chunks_are_not_gathered_by_a_timer(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "seed": 2, "stream": True}
    with tiny_server.http.stream("POST", "/v1/completions", json=fields) as response:
        times = [time.monotonic() for line in response.iter_lines() if line]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Basaran sent one in 50 ms.
    assert sum(gap < 0.03 for gap in gaps) > 10


def test_a_finished_choice_does_not_wait_for_the_others(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
    short, long = "the cat", "a rat"
    stop = tiny_server.complete(prompt=short, **fields).json()["choices"][0]["text"][3:6]
    other = tiny_server.complete(prompt=long, stop=stop, **fields).json()["choices"][0]["text"]
    assert len(other) > 20, "both would end early"
    chunks = events(tiny_server.complete(prompt=[short, long], stop=stop, stream=True, **fields))
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    end = next(i for i, c in enumerate(chunks) if c["choices"][0]["finish_reason"] == "stop")
    assert order[end] == 0
    assert order[end + 1 :].count(1) > 10


def test_what_a_finished_choice_did_not_generate_is_not_counted(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
    stop = tiny_server.complete(prompt="the cat", **fields).json()["choices"][0]["text"][3:6]
    body = tiny_server.complete(prompt=["the cat", "a rat"], stop=stop, **fields).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] < 80


def test_errors_tell_type_param_and_code_too(tiny_server: RunningServer) -> None:
    told = error(tiny_server.complete(prompt=PROMPT, n=0), 400)
    assert told == {
        "message": "n must be at least 1",
        "type": "invalid_request_error",
        "param": "n",
        "code": None,
    }


def test_logprobs_are_the_models_own_at_any_temperature(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 1, "logprobs": 5, "seed": 3}
    tops = [
        tiny_server.complete(**fields, temperature=temperature).json()["choices"][0]["logprobs"][
            "top_logprobs"
        ][0]
        for temperature in (0, 0.2, 2)
    ]
    shared = set(tops[0]).intersection(*tops[1:])
    assert shared
    for text in shared:
        assert len({top[text] for top in tops}) == 1


def test_a_replacement_character_is_kept(tiny_server: RunningServer) -> None:
    prompt = "a\ufffdb"
    text = tiny_server.complete(prompt=prompt, max_tokens=0, echo=True).json()["choices"][0]["text"]
    assert text == prompt
    back = tiny_server.http.post("/detokenize", json={"tokens": ids(tiny_server, prompt)}).json()
    assert back == {"prompt": prompt}

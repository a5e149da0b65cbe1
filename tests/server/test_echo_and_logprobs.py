"""Echo, logprobs, best_of and the parameters that change the choice, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from ..running_server import RunningServer
from ..tiny_models import generate, tiny_model, tiny_tokenizer
from .test_api import error, events, streamed_texts

PROMPT = "the cat 😀 sat"


def choice(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = server.complete(**{"prompt": PROMPT, "max_tokens": 8, "seed": 5} | fields)
    assert response.status_code == 200, response.text
    got: dict[str, Any] = response.json()["choices"][0]
    return got


def check_arrays(text: str, logprobs: dict[str, list[Any]], start: int = 0) -> None:
    """The invariants that clients slice by."""
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(values) for values in logprobs.values()}) == 1
    assert "".join(logprobs["tokens"]) == text
    offset = start
    for token, given in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert given == offset
        offset += len(token)


def test_echo_puts_the_prompt_before_the_completion(tiny_server: RunningServer) -> None:
    plain, echoed = choice(tiny_server), choice(tiny_server, echo=True)
    assert echoed["text"] == PROMPT + plain["text"]
    streamed = tiny_server.complete(prompt=PROMPT, max_tokens=8, seed=5, echo=True, stream=True)
    assert streamed_texts(streamed) == {0: echoed["text"]}


def test_echo_does_not_count_the_prompt_as_completion(tiny_server: RunningServer) -> None:
    usage = tiny_server.complete(prompt=PROMPT, max_tokens=3, echo=True).json()["usage"]
    assert usage["completion_tokens"] == 3


def test_a_stop_string_never_matches_in_the_prompt(tiny_server: RunningServer) -> None:
    got = choice(tiny_server, echo=True, stop=["cat"], logprobs=0, temperature=0)
    assert got["text"].startswith(PROMPT)


@pytest.mark.parametrize("logprobs", [None, 1])
def test_max_tokens_0_with_echo_tells_the_prompt_alone(
    tiny_server: RunningServer, logprobs: int | None
) -> None:
    response = tiny_server.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=logprobs).json()
    got = response["choices"][0]
    assert (got["text"], got["finish_reason"]) == (PROMPT, "length")
    assert response["usage"]["completion_tokens"] == 0
    if logprobs is None:
        assert got["logprobs"] is None
    else:
        check_arrays(PROMPT, got["logprobs"])


@pytest.mark.parametrize("top", [0, 1, 5])
def test_logprobs_tell_each_token_and_the_likeliest(tiny_server: RunningServer, top: int) -> None:
    got = choice(tiny_server, logprobs=top, max_tokens=20)
    check_arrays(got["text"], got["logprobs"], start=len(PROMPT))
    told = got["logprobs"]
    for token_logprob, likeliest in zip(told["token_logprobs"], told["top_logprobs"], strict=True):
        # The chosen token comes first; one of the same text that is likelier takes its place.
        assert next(iter(likeliest.values())) >= token_logprob
        assert 1 <= len(likeliest) <= top + 1
        if top:
            assert max(likeliest.values()) >= token_logprob


def test_null_logprobs_are_null_and_0_is_an_object(tiny_server: RunningServer) -> None:
    assert choice(tiny_server, logprobs=None)["logprobs"] is None
    assert choice(tiny_server, logprobs=0)["logprobs"]["tokens"]


def test_a_greedy_token_is_the_likeliest_by_the_very_same_number(tiny_server: RunningServer) -> None:
    told = choice(tiny_server, logprobs=1, temperature=0, echo=True)["logprobs"]
    generated = range(len(told["tokens"]) - 8, len(told["tokens"]))
    for position in generated:
        assert told["token_logprobs"][position] == max(told["top_logprobs"][position].values())


def test_an_echoed_prompts_first_token_has_null_and_the_others_numbers(tiny_server: RunningServer) -> None:
    got = choice(tiny_server, echo=True, logprobs=2)
    check_arrays(got["text"], got["logprobs"])
    assert got["logprobs"]["token_logprobs"][0] is None
    assert got["logprobs"]["top_logprobs"][0] is None
    # Never the zeros that Basaran made up.
    assert all(value < 0 for value in got["logprobs"]["token_logprobs"][1:])


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"echo": False}, {"stop": "a"}, {"echo": True, "stop": "e"}], ids=str
)
def test_streamed_logprobs_joined_are_the_plain_ones(
    tiny_server: RunningServer, fields: dict[str, Any]
) -> None:
    for seed in range(6):
        asked = {"prompt": PROMPT, "max_tokens": 30, "seed": seed, "logprobs": 2, "temperature": 1.4} | fields
        plain = tiny_server.complete(**asked).json()["choices"][0]
        chunks = [event["choices"][0] for event in events(tiny_server.complete(**asked, stream=True))]
        joined = {key: [x for chunk in chunks for x in chunk["logprobs"][key]] for key in plain["logprobs"]}
        assert "".join(chunk["text"] for chunk in chunks) == plain["text"]
        assert joined == plain["logprobs"]
        check_arrays(plain["text"], plain["logprobs"], 0 if fields.get("echo") else len(PROMPT))


def test_lm_evals_request_gets_what_lm_eval_reads(tiny_server: RunningServer) -> None:
    ids = tiny_tokenizer()(["the cat sat on the mat", "the rat ate"])["input_ids"]
    response = tiny_server.complete(
        prompt=ids, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234, stop=[], model="m"
    ).json()
    for position, prompt in enumerate(ids):
        told = response["choices"][position]["logprobs"]
        assert len(told["token_logprobs"]) == len(prompt) + 1, "exactly one generated entry"
        assert all(isinstance(value, float) for value in told["token_logprobs"][1:])


def test_an_end_by_token_has_an_entry_without_text(tiny_server: RunningServer) -> None:
    greedy = {"temperature": 0, "max_tokens": 8}
    tokens = generate(tiny_model("llama"), tuple(tiny_tokenizer()(PROMPT)["input_ids"]), 8)
    stop = next(
        token for token in tokens if token not in tokens[: tokens.index(token)] and token != tokens[0]
    )
    got = choice(tiny_server, **greedy, stop_token_ids=[stop], logprobs=0)
    assert got["finish_reason"] == "stop"
    assert got["logprobs"]["tokens"][-1] == ""
    assert len(got["logprobs"]["tokens"]) == tokens.index(stop) + 1


def test_best_of_tells_the_likeliest_and_counts_all(tiny_server: RunningServer) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 6, "seed": 40, "temperature": 1.5}
    every = tiny_server.complete(**asked, n=6, logprobs=0).json()
    means = {
        c["text"]: sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"])
        for c in every["choices"]
    }
    best = tiny_server.complete(**asked, n=2, best_of=6).json()
    assert [c["text"] for c in best["choices"]] == sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [(c["index"], c["logprobs"]) for c in best["choices"]] == [(0, None), (1, None)]
    assert best["usage"] == every["usage"]


def test_a_bias_of_100_decides_and_of_minus_100_forbids(tiny_server: RunningServer) -> None:
    token = tiny_tokenizer()("cat")["input_ids"][0]
    text = tiny_tokenizer().decode([token])
    assert choice(tiny_server, logit_bias={str(token): 100}, temperature=0)["text"] == text * 8
    (likeliest,) = generate(tiny_model("llama"), tuple(tiny_tokenizer()(PROMPT)["input_ids"]), 1)
    one = {"temperature": 0, "max_tokens": 1, "logprobs": 0}
    free = choice(tiny_server, **one)["logprobs"]["token_logprobs"]
    forbidden = choice(tiny_server, **one, logit_bias={str(likeliest): -100})["logprobs"]["token_logprobs"]
    assert forbidden[0] < free[0]


def test_presence_and_repetition_penalties_change_a_repeating_text(tiny_server: RunningServer) -> None:
    plain = choice(tiny_server, temperature=0, max_tokens=40)["text"]
    for fields in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 1.8}):
        assert choice(tiny_server, temperature=0, max_tokens=40, **fields)["text"] != plain


def test_min_tokens_keeps_a_stop_string_from_ending_early(tiny_server: RunningServer) -> None:
    whole = choice(tiny_server, temperature=0, max_tokens=30)["text"]
    stop = whole[2]
    assert len(choice(tiny_server, temperature=0, max_tokens=30, stop=stop)["text"]) <= 2
    longer = choice(tiny_server, temperature=0, max_tokens=30, stop=stop, min_tokens=20)["text"]
    assert len(longer) > 2
    assert whole.startswith(longer)


def test_tokens_survive_a_round_trip_through_the_tokenizer_endpoints(tiny_server: RunningServer) -> None:
    told = tiny_server.http.post("/tokenize", json={"prompt": PROMPT, "return_token_strs": True}).json()
    assert told["tokens"] == tiny_tokenizer()(PROMPT)["input_ids"]
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 512)
    assert len(told["token_strs"]) == told["count"]
    back = tiny_server.http.post("/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": PROMPT}
    info = tiny_server.http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"]) == ("<|end|>", "<|begin|>")


MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": MESSAGES}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [320]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
    ],
)
def test_the_tokenizer_endpoints_refuse_by_name(
    tiny_server: RunningServer, path: str, body: dict[str, Any], param: str
) -> None:
    assert error(tiny_server.http.post(path, json=body), 400)["param"] == param


def test_a_model_without_a_chat_template_says_so(tiny_server: RunningServer) -> None:
    response = tiny_server.http.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
    )
    fields = error(response, 400)
    assert (fields["code"], fields["param"]) == ("chat_template_missing", "messages")


def test_a_choice_that_a_stop_string_cut_is_ranked_by_all_it_generated(tiny_server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4, "seed": 11, "logprobs": 0}
    candidates = tiny_server.complete(**asked, n=8).json()["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / 4 for c in candidates]
    worst = candidates[means.index(min(means))]
    first = worst["logprobs"]["tokens"][0]
    if sum(c["text"].startswith(first) for c in candidates) > 1 or not first.strip("\ufffd"):
        first = worst["text"]
    best = tiny_server.complete(**asked, best_of=8, stop=[first]).json()["choices"][0]
    assert best["text"] != "", "nothing at all was preferred to everything"


def test_ranking_changes_nothing_that_is_told(tiny_server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": "the <|begin|>cat", "max_tokens": 3, "temperature": 0, "echo": True}
    one, ranked = choice(tiny_server, **asked), choice(tiny_server, **asked, best_of=3)
    assert ranked == one
    assert ranked["logprobs"] is None

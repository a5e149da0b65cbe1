from __future__ import annotations

import json
from typing import Any

import pytest

from basaran_ops.errors import InvalidRequest
from basaran_ops.server.protocol import CompletionRequest
from basaran_ops.settings import Settings


def parse(
    body: object = None, /, query: dict[str, list[str]] | None = None, **fields: object
) -> CompletionRequest:
    raw = body if isinstance(body, bytes) else json.dumps(fields if body is None else body).encode()
    return CompletionRequest.parse(raw, query or {}, Settings())


def refused(*args: Any, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse(*args, **fields).sampling_params()
    return raised.value


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (None, [None]),
    ],
)
def test_a_prompt_has_four_forms_and_may_be_absent(prompt: object, expected: object) -> None:
    assert parse(prompt=prompt).prompt == expected


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [[]],
        [[1], []],
        ["a", 1],
        [1, "a"],
        [1, [2]],
        ["a", ["b"]],
        [True],
        [1.5],
        [None],
        7,
        True,
        {"a": 1},
    ],
    ids=str,
)
def test_other_prompts_are_refused(prompt: object) -> None:
    assert refused(prompt=prompt).param == "prompt"


def test_unpaired_surrogates_are_refused() -> None:
    assert refused(b'{"prompt": "\\ud800"}').status == 400
    assert refused(b'{"stop": "\\udc00"}').status == 400


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", "16"),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("max_tokens", -1),
        ("temperature", "1"),
        ("temperature", 2.5),
        ("temperature", False),
        ("top_p", -0.1),
        ("top_k", 1.5),
        ("top_k", -2),
        ("min_p", 2),
        ("n", 0),
        ("n", 17),
        ("n", "2"),
        ("seed", 1.5),
        ("seed", 2**70),
        ("stop", 1),
        ("stop", ["a", 1]),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stream", 1),
        ("stream", "true"),
        ("stream_options", []),
        ("stream_options", {"include_usage": 1}),
        ("model", 1),
        ("user", 1),
    ],
)
def test_a_wrong_type_or_range_is_refused_by_name(param: str, value: object) -> None:
    error = refused({"prompt": "x", "stream": True} | {param: value})
    assert error.param is not None
    assert error.param.split(".")[0] == param
    assert (error.status, error.type) == (400, "invalid_request_error")


def test_null_is_the_default_for_every_field() -> None:
    nulls = dict.fromkeys(CompletionRequest.model_fields)
    assert parse(nulls) == parse({})


def test_unknown_fields_are_let_through() -> None:
    assert parse(prompt="x", frobnicate=True).prompt == ["x"]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("logprobs", 0),
        ("logprobs", 5),
        ("echo", True),
        ("best_of", 3),
        ("suffix", "end"),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("repetition_penalty", 1.1),
        ("logit_bias", {"5": 1}),
        ("min_tokens", 2),
        ("ignore_eos", True),
        ("stop_token_ids", [5]),
    ],
)
def test_what_is_not_there_is_refused_and_never_ignored(param: str, value: object) -> None:
    error = refused(prompt="x", **{param: value})
    assert (error.param, error.code) == (param, "unsupported_parameter")


def test_values_that_change_nothing_are_accepted() -> None:
    parse(
        best_of=1,
        echo=False,
        suffix="",
        presence_penalty=0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias={},
        min_tokens=0,
        ignore_eos=False,
        stop_token_ids=[],
        top_k=-1,
    ).sampling_params()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[1]",
        b'"text"',
        b"{",
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b"[" * 100000,
        b'{"a":' * 5000,
        b"\xff\xfe",
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    assert refused(body).status == 400


def test_stream_options_need_stream() -> None:
    assert refused(prompt="x", stream_options={"include_usage": True}).param == "stream_options"
    assert parse(prompt="x", stream=True, stream_options={"include_usage": True}).include_usage


def test_more_prompts_than_allowed_are_refused() -> None:
    assert refused(prompt=["x"] * 1025).param == "prompt"


def test_basarans_limits_refuse_and_never_cut() -> None:
    settings = Settings(completion_max_tokens=10, completion_max_prompt=5)
    with pytest.raises(InvalidRequest, match="max_tokens must be at most 10"):
        CompletionRequest.parse(b'{"max_tokens": 11}', {}, settings)
    with pytest.raises(InvalidRequest, match="prompt must be at most 5 characters"):
        CompletionRequest.parse(b'{"prompt": "123456"}', {}, settings)
    assert CompletionRequest.parse(b'{"prompt": "12345"}', {}, settings).max_tokens == 10


def test_query_parameters_stand_for_json_and_beat_the_body() -> None:
    query = {"prompt": ["from query"], "max_tokens": ["5"], "stream": ["true"], "temperature": ["0.5"]}
    request = parse({"prompt": "from body", "max_tokens": 9, "n": 2}, query=query)
    assert (request.prompt, request.max_tokens, request.stream, request.n) == (["from query"], 5, True, 2)
    assert request.temperature == 0.5


def test_a_number_as_prompt_in_the_query_is_text() -> None:
    assert parse(b"", query={"prompt": ["42"]}).prompt == ["42"]
    assert parse(b"", query={"stop": ["1", "2"]}).stop == ["1", "2"]


@pytest.mark.parametrize(("name", "value"), [("max_tokens", "many"), ("stream", "perhaps"), ("n", "")])
def test_a_query_parameter_of_the_wrong_type_is_refused_by_name(name: str, value: str) -> None:
    assert refused(b"", query={name: [value]}).param == name

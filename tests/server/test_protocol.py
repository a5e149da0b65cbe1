from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from basaran_ops.errors import InvalidRequest
from basaran_ops.server.protocol import ChatRequest, CompletionRequest
from basaran_ops.settings import Settings


def parse(
    body: object = None, /, query: dict[str, list[str]] | None = None, **fields: object
) -> CompletionRequest:
    raw = body if isinstance(body, bytes) else json.dumps(fields if body is None else body).encode()
    return CompletionRequest.parse(raw, Settings(), query)


def refused(*args: Any, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse(*args, **fields).sampling_params(Settings())
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
        ("logprobs", True),
        ("logprobs", 21),
        ("logprobs", -1),
        ("echo", 1),
        ("best_of", 0),
        ("best_of", 17),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", "1"),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"": 1}),
        ("logit_bias", {"-5": 1}),
        ("logit_bias", {" 5": 1}),
        ("logit_bias", {"1_0": 1}),
        ("logit_bias", {"٣": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"5": None}),
        ("logit_bias", {"5": True}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": "1"}),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("ignore_eos", "yes"),
        ("stop_token_ids", 5),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", [True]),
        ("user", 1),
    ],
)
def test_a_wrong_type_or_range_is_refused_by_name(param: str, value: object) -> None:
    error = refused({"prompt": "x", "stream": True} | {param: value})
    assert error.param is not None
    assert re.split(r"[.\[]", error.param)[0] == param
    assert (error.status, error.type) == (400, "invalid_request_error")


def test_null_is_the_default_for_every_field() -> None:
    nulls = dict.fromkeys(CompletionRequest.model_fields)
    assert parse(nulls) == parse({})


def test_unknown_fields_are_let_through_and_logged_by_name_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert parse(prompt="x", frobnicate="secret").prompt == ["x"]
    assert "CompletionRequest has unknown fields: frobnicate" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("response_format", {}),
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
    ).sampling_params(Settings())


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


def test_best_of_is_at_least_n_and_equals_it_in_a_stream() -> None:
    assert refused(prompt="x", n=3, best_of=2).param == "best_of"
    assert refused(prompt="x", n=1, best_of=2, stream=True).param == "best_of"
    assert parse(prompt="x", n=2).sampling_params(Settings()).n == 2
    assert parse(prompt="x", n=2, best_of=4).sampling_params(Settings()).n == 4


def chat(**fields: object) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "hi"}]} | fields
    return ChatRequest.parse(json.dumps(body).encode(), Settings())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": 5}]},
            "messages[1].content",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"response_format": "text"}, "response_format"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
    ids=str,
)
def test_a_bad_conversation_is_refused_by_the_name_of_its_part(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat(**fields)
    assert raised.value.param == param


def test_what_changes_nothing_in_a_chat_is_accepted() -> None:
    chat(tools=[], tool_choice="none", response_format={"type": "text"}, parallel_tool_calls=True)


def test_parts_are_joined_and_arguments_of_tool_calls_are_objects_for_the_template() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    request = chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "result", "tool_call_id": "1"},
        ]
    )
    first, second, third = (message.for_template() for message in request.messages)
    assert first == {"role": "user", "content": "ab"}
    assert second["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert third["tool_call_id"] == "1"


def test_the_limit_of_a_prompt_holds_for_a_conversation_as_a_whole() -> None:
    messages = [
        {"role": "user", "content": "1234"},
        {"role": "user", "content": [{"type": "text", "text": "567"}]},
    ]
    body = json.dumps({"messages": messages}).encode()
    assert len(ChatRequest.parse(body, Settings(completion_max_prompt=7)).messages) == 2
    with pytest.raises(InvalidRequest, match="messages must be at most 6 characters") as raised:
        ChatRequest.parse(body, Settings(completion_max_prompt=6))
    assert raised.value.param == "messages"


def test_a_suffix_excludes_scores_of_the_echoed_prompt() -> None:
    assert refused(prompt="x", suffix="y", echo=True, logprobs=1).param == "suffix"
    assert parse(prompt="x", suffix="y", echo=True).suffix == "y"


def test_max_completion_tokens_goes_before_its_old_name() -> None:
    assert chat(max_tokens=3, max_completion_tokens=5).limit == 5
    assert chat(max_tokens=3).limit == 3
    assert chat().limit is None


def test_stream_options_need_stream() -> None:
    assert refused(prompt="x", stream_options={"include_usage": True}).param == "stream_options"
    assert parse(prompt="x", stream=True, stream_options={"include_usage": True}).include_usage


def test_more_prompts_than_allowed_are_refused() -> None:
    assert refused(prompt=["x"] * 1025).param == "prompt"


def test_basarans_limits_refuse_and_never_cut() -> None:
    settings = Settings(completion_max_tokens=10, completion_max_prompt=5)
    with pytest.raises(InvalidRequest, match="max_tokens must be at most 10"):
        CompletionRequest.parse(b'{"max_tokens": 11}', settings)
    with pytest.raises(InvalidRequest, match="prompt must be at most 5 characters"):
        CompletionRequest.parse(b'{"prompt": "123456"}', settings)
    allowed = CompletionRequest.parse(b'{"prompt": "12345"}', settings)
    assert allowed.sampling_params(settings).max_tokens == 10


def test_query_parameters_stand_for_json_and_beat_the_body() -> None:
    query = {"prompt": ["from query"], "max_tokens": ["5"], "stream": ["true"], "temperature": ["0.5"]}
    request = parse({"prompt": "from body", "max_tokens": 9, "n": 2}, query=query)
    assert (request.prompt, request.max_tokens, request.stream, request.n) == (["from query"], 5, True, 2)
    assert request.temperature == 0.5


def test_a_number_as_prompt_in_the_query_is_text() -> None:
    assert parse({}, query={"prompt": ["42"]}).prompt == ["42"]
    assert parse({}, query={"stop": ["1", "2"]}).stop == ["1", "2"]


@pytest.mark.parametrize(("name", "value"), [("max_tokens", "many"), ("stream", "perhaps"), ("n", "")])
def test_a_query_parameter_of_the_wrong_type_is_refused_by_name(name: str, value: str) -> None:
    assert refused({}, query={name: [value]}).param == name

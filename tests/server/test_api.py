"""The API as any HTTP client sees it, on a real server with a tiny model."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from ..running_server import RunningServer
from ..tiny_models import VOCAB

FIELDS = {"message", "type", "param", "code"}


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == FIELDS
    assert response.headers["content-type"] == "application/json"
    fields: dict[str, Any] = body["error"]
    return fields


def events(response: httpx.Response) -> list[Any]:
    """The payloads of a stream, framing checked to the byte."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert b"\r" not in response.content
    frames = response.content.split(b"\n\n")
    assert frames[-1] == b""
    assert frames[-2] == b"data: [DONE]"
    assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames[:-1])
    return [json.loads(frame[6:]) for frame in frames[:-2]]


def streamed_texts(response: httpx.Response) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events(response):
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def test_a_completion_has_openais_shape(tiny_server: RunningServer) -> None:
    response = tiny_server.complete(prompt="the cat", max_tokens=5, temperature=0, model="anything")
    assert response.status_code == 200
    body = response.json()
    assert re.fullmatch(r"cmpl-[0-9a-f]{24}", body["id"])
    assert (body["object"], body["model"]) == ("text_completion", "org/tiny")
    (choice,) = body["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"]
)
def test_the_body_is_parsed_whatever_its_content_type(tiny_server: RunningServer, content_type: str) -> None:
    response = tiny_server.http.post(
        "/v1/completions", content=b'{"prompt": "x", "max_tokens": 1}', headers={"content-type": content_type}
    )
    assert response.status_code == 200


def test_a_stream_joined_is_the_plain_text(tiny_server: RunningServer) -> None:
    for seed in range(10):
        fields = {"prompt": "the 😀 cat", "max_tokens": 40, "seed": seed, "temperature": 1.5}
        plain = tiny_server.complete(**fields).json()["choices"][0]["text"]
        assert streamed_texts(tiny_server.complete(**fields, stream=True)) == {0: plain}


def test_every_chunk_of_a_stream_has_one_id_and_the_last_a_reason(tiny_server: RunningServer) -> None:
    chunks = events(tiny_server.complete(prompt="the", max_tokens=6, stream=True))
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {None}
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(tiny_server: RunningServer) -> None:
    *chunks, last = events(
        tiny_server.complete(prompt="the", max_tokens=6, stream=True, stream_options={"include_usage": True})
    )
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6


def test_choices_are_numbered_by_prompt_and_n(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": ["the cat", "the mat"], "n": 3, "max_tokens": 8, "seed": 3}
    body = tiny_server.complete(**fields).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert body["usage"]["completion_tokens"] == 48
    texts = {choice["index"]: choice["text"] for choice in body["choices"]}
    assert streamed_texts(tiny_server.complete(**fields, stream=True)) == texts
    for prompt, choices in ((0, range(3)), (1, range(3, 6))):
        single = tiny_server.complete(**fields | {"prompt": fields["prompt"][prompt]}).json()
        assert [choice["text"] for choice in single["choices"]] == [texts[index] for index in choices]
    # Prompt tokens count once per prompt, not times n.
    one = tiny_server.complete(prompt="the cat", max_tokens=1).json()["usage"]["prompt_tokens"]
    other = tiny_server.complete(prompt="the mat", max_tokens=1).json()["usage"]["prompt_tokens"]
    assert body["usage"]["prompt_tokens"] == one + other


def test_tokens_computed_before_are_counted_as_cached(tiny_server: RunningServer) -> None:
    prompt = [9, 8, 7] * 20

    def usage(**fields: Any) -> dict[str, Any]:
        used: dict[str, Any] = tiny_server.complete(prompt=prompt, max_tokens=2, **fields).json()["usage"]
        return used

    first, second = usage(), usage()
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"] == {"cached_tokens": 59}
    assert second["prompt_tokens"] == 60
    assert usage(n=3)["prompt_tokens_details"] == {"cached_tokens": 59}, "a prompt counts once"
    assert usage(echo=True, logprobs=0)["prompt_tokens_details"] == {"cached_tokens": 0}


def test_n_choices_at_temperature_0_are_alike(tiny_server: RunningServer) -> None:
    choices = tiny_server.complete(prompt="the", n=3, temperature=0).json()["choices"]
    assert len({choice["text"] for choice in choices}) == 1


def test_more_sequences_than_slots_are_all_answered(tiny_server: RunningServer) -> None:
    prompts = [[5, 6, number] for number in range(10, 40)]
    choices = tiny_server.complete(prompt=prompts, max_tokens=4, temperature=0).json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(30))
    for number in (0, 29):
        alone = tiny_server.complete(prompt=prompts[number], max_tokens=4, temperature=0).json()
        assert alone["choices"][0]["text"] == choices[number]["text"]


def test_a_stop_string_ends_the_text_before_it(tiny_server: RunningServer) -> None:
    fields = {"prompt": "the cat", "max_tokens": 60, "temperature": 0}
    whole = tiny_server.complete(**fields).json()["choices"][0]["text"]
    stop = whole[20:24]
    expected = whole[: whole.index(stop)]
    for extra in ({"stop": stop}, {"stop": [stop, "never"]}):
        choice = tiny_server.complete(**fields, **extra).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
        assert streamed_texts(tiny_server.complete(**fields, **extra, stream=True)) == {0: expected}


def test_any_number_of_stop_strings_will_do_and_none_too(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "the cat", "max_tokens": 60, "temperature": 0}
    whole = tiny_server.complete(**fields).json()["choices"][0]["text"]
    assert tiny_server.complete(**fields, stop=[]).json()["choices"][0]["text"] == whole
    many = [f"never {number}" for number in range(40)] + [whole[20:24]]
    choice = tiny_server.complete(**fields, stop=many).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(whole[20:24])], "stop")


@pytest.mark.parametrize("key", ["", "Bearer any", "Basic x", "Bearer"])
def test_without_keys_whatever_a_client_sends_for_one_passes(tiny_server: RunningServer, key: str) -> None:
    response = tiny_server.http.get("/v1/models", headers={"Authorization": key})
    assert response.status_code == 200


def test_every_answer_of_the_app_tells_how_long_it_took(tiny_server: RunningServer) -> None:
    for path in ("/v1/models", "/nothing"):
        assert int(tiny_server.http.get(path).headers["openai-processing-ms"]) >= 0


def test_max_tokens_0_generates_nothing(tiny_server: RunningServer) -> None:
    steps = tiny_server.stats()["step"]
    body = tiny_server.complete(prompt="the cat", max_tokens=0).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("", "length")
    assert body["usage"]["completion_tokens"] == 0
    assert tiny_server.stats()["step"] == steps


def test_an_absent_prompt_starts_from_bos(tiny_server: RunningServer) -> None:
    usage = tiny_server.complete(max_tokens=1).json()["usage"]
    assert usage["prompt_tokens"] == 1


def test_get_takes_the_query(tiny_server: RunningServer) -> None:
    query: dict[str, Any] = {"prompt": "the cat", "max_tokens": 4, "temperature": 0}
    plain = tiny_server.http.get("/v1/completions", params=query).json()["choices"][0]["text"]
    assert plain == tiny_server.complete(**query).json()["choices"][0]["text"]
    streamed = tiny_server.http.get("/v1/completions", params=query | {"stream": "true"})
    assert streamed_texts(streamed) == {0: plain}


def test_the_served_model_is_listed_and_found_under_its_encoded_name(tiny_server: RunningServer) -> None:
    (model,) = tiny_server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("org/tiny", "model", 512)
    assert isinstance(model["created"], int)
    for name in ("org/tiny", "org%2Ftiny"):
        assert tiny_server.http.get(f"/v1/models/{name}").json() == model
    missing = error(tiny_server.http.get("/v1/models/org%2Fother"), 404)
    assert (missing["code"], missing["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b'{"repetition_penalty": 1e-40}', "repetition_penalty"),
        (b"{", None),
        (b"[]", None),
        (b'{"prompt": []}', "prompt"),
        (b'{"prompt": [[]]}', "prompt"),
        (b'{"prompt": [320]}', "prompt"),
        (b'{"prompt": [-1]}', "prompt"),
        (b'{"prompt": [[1], [99999999999999999999]]}', "prompt"),
        (b'{"max_tokens": "5"}', "max_tokens"),
        (b'{"temperature": []}', "temperature"),
        (b'{"n": 1000}', "n"),
        (b'{"stop": ""}', "stop"),
        (b'{"suffix": "x"}', "suffix"),
        (b'{"logit_bias": {"320": 1}}', "logit_bias"),
        (b'{"stop_token_ids": [-1]}', "stop_token_ids"),
    ],
)
def test_bad_requests_are_400_and_name_the_parameter(
    tiny_server: RunningServer, body: bytes, param: str | None
) -> None:
    fields = error(tiny_server.http.post("/v1/completions", content=body), 400)
    assert (fields["type"], fields["param"]) == ("invalid_request_error", param)


def test_a_bad_request_for_a_stream_is_a_status_and_no_stream(tiny_server: RunningServer) -> None:
    error(tiny_server.complete(prompt=[VOCAB], stream=True), 400)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [5] * 512}, "prompt"),
        ({"prompt": [5] * 5000, "max_tokens": 1}, "prompt"),
        ({"prompt": [5] * 500, "max_tokens": 13}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 100000}, "max_tokens"),
    ],
)
def test_beyond_the_context_is_400_in_openais_words(
    tiny_server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    got = error(tiny_server.complete(**fields), 400)
    assert (got["code"], got["param"]) == ("context_length_exceeded", param)
    assert got["message"].startswith("This model's maximum context length is 512 tokens. However, ")


def test_a_limit_that_was_not_asked_for_is_no_reason_to_refuse(tiny_server: RunningServer) -> None:
    body = tiny_server.complete(prompt=[5] * 507).json()
    assert body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("temperature", [1e-40, 1e-10, 1e-4, 1e-3])
def test_a_tiny_temperature_is_greedy_and_harms_nobody(
    tiny_server: RunningServer, temperature: float
) -> None:
    fields = {"prompt": "the cat", "max_tokens": 8}
    cold = tiny_server.complete(**fields, temperature=temperature).json()["choices"][0]["text"]
    assert cold == tiny_server.complete(**fields, temperature=0).json()["choices"][0]["text"]
    assert tiny_server.health()["replicas"][0]["restarts"] == 0


def test_a_post_without_a_body_is_400_whatever_its_query(tiny_server: RunningServer) -> None:
    error(tiny_server.http.post("/v1/completions?prompt=x"), 400)


def test_negative_seeds_are_seeds_of_their_own(tiny_server: RunningServer) -> None:
    choices = tiny_server.complete(prompt="the", seed=-1, n=3, max_tokens=12).json()["choices"]
    assert len({choice["text"] for choice in choices}) == 3


def test_the_context_can_be_filled_to_the_last_token(tiny_server: RunningServer) -> None:
    body = tiny_server.complete(prompt=[5] * 500, max_tokens=12).json()
    assert body["usage"]["total_tokens"] == 512


def test_numbers_beyond_any_use_are_refused_by_name(tiny_server: RunningServer) -> None:
    for name in ("max_tokens", "top_k"):
        body = b'{"prompt": "x", "%s": %s}' % (name.encode(), b"9" * 4200)
        assert error(tiny_server.http.post("/v1/completions", content=body), 400)["param"] == name


def test_head_answers_as_get_does(tiny_server: RunningServer) -> None:
    assert (
        tiny_server.http.head("/v1/completions", params={"prompt": "a", "max_tokens": 1}).status_code == 200
    )


def test_a_long_prompt_may_be_in_the_query(tiny_server: RunningServer) -> None:
    query = {"prompt": "中" * 450, "max_tokens": "0", "echo": "true"}
    answer = tiny_server.http.get("/v1/completions", params=query)
    assert error(answer, 400)["code"] == "context_length_exceeded", "its tokens are too many, not its bytes"


def test_other_errors_have_the_same_shape(tiny_server: RunningServer) -> None:
    assert error(tiny_server.http.get("/nothing"), 404)["code"] == "not_found"
    refused = tiny_server.http.delete("/v1/completions")
    assert error(refused, 405)["code"] == "method_not_allowed"
    assert "POST" in refused.headers["allow"]


def test_every_response_has_a_request_id_and_echoes_a_given_one(tiny_server: RunningServer) -> None:
    given = tiny_server.http.get("/v1/models", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    first, second = (tiny_server.http.get("/nothing").headers["x-request-id"] for _ in range(2))
    assert first != second
    long = tiny_server.http.get("/v1/models", headers={"x-request-id": "x" * 500})
    assert len(long.headers["x-request-id"]) == 32


def test_health_tells_what_the_engines_do(tiny_server: RunningServer) -> None:
    health = tiny_server.health()
    assert (health["status"], health["ready"], health["draining"]) == ("ready", True, False)
    assert health["capacity"] == 68
    assert health["replicas"][0]["state"] == "ready"


def test_the_server_names_itself(tiny_server: RunningServer) -> None:
    assert tiny_server.http.get("/health").headers["server"] == "basaran_ops"

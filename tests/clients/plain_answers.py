"""What the server answers without any client's library: the measure of what a client makes of it."""

from __future__ import annotations

from typing import Any

from ..running_server import RunningServer

GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
# Two choices that differ, the same ones at every call.
SEEDED: dict[str, Any] = {"max_tokens": 12, "temperature": 1, "seed": 7, "n": 2}
PROMPT = "the cat sat on"
QUESTION = [{"role": "user", "content": "where is the cat?"}]


def completion(server: RunningServer, **fields: object) -> dict[str, Any]:
    return _answer(server, "/v1/completions", {"prompt": PROMPT} | fields)


def chat(server: RunningServer, **fields: object) -> dict[str, Any]:
    return _answer(server, "/v1/chat/completions", {"messages": QUESTION} | fields)


def texts(answer: dict[str, Any]) -> list[str]:
    """The choices of a completion or of a conversation, by their index."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]


def counts(usage: dict[str, Any]) -> list[int]:
    """Without the details, which differ where a prompt was read before."""
    return [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]


def _answer(server: RunningServer, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    response = server.http.post(path, json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer

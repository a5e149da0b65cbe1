"""Conversations with the real default model, by OpenAI's own client, waiting and not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from ..running_server import RunningServer, running_server
from ..server.test_api import events

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture(scope="module")
def server(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("chat") / "log"
    with running_server(
        log,
        MODEL=str(default_model_path),
        ENGINE_SLOTS="4",
        ENGINE_CONTEXT_LENGTH="512",
        MODEL_DTYPE="float32",
    ) as server:
        yield server.wait_ready()


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


def test_a_conversation_is_answered_and_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=QUESTION, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop", "without a limit it goes on until the model ends"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 1


def test_models_tell_that_the_model_converses(server: RunningServer) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["capabilities"] == {"chat": True, "infilling": False, "continuation": True}


def test_a_streamed_answer_is_the_plain_one_with_the_role_first(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "m",
        "messages": QUESTION,
        "max_completion_tokens": 20,
        "seed": 3,
        "n": 2,
    }
    plain = [c.message.content for c in client.chat.completions.create(**asked).choices]
    texts, roles, reasons = ["", ""], [0, 0], {}
    *chunks, last = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks:
        (choice,) = chunk.choices
        assert chunk.object == "chat.completion.chunk"
        assert chunk.usage is None
        if choice.delta.role:
            assert not texts[choice.index], "the role came after text"
            roles[choice.index] += 1
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == plain
    assert roles == [1, 1]
    assert set(reasons) == {0, 1}
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens <= 40


def test_logprobs_have_chats_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == 4
    for token in told.content:
        assert token.bytes == list(token.token.encode())
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob, "greedy, so the likeliest"


def test_token_ids_are_told_in_chats_shape_and_go_on_as_a_completion(server: RunningServer) -> None:
    asked = {
        "messages": QUESTION,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
    }
    whole = server.http.post("/v1/chat/completions", json=asked).json()
    (choice,) = whole["choices"]
    rendered = server.http.post("/tokenize", json={"messages": QUESTION}).json()["tokens"]
    assert whole["prompt_token_ids"] == rendered
    for entry, token in zip(choice["logprobs"]["content"], choice["token_ids"], strict=True):
        assert (
            entry["token_id"] == token == max(entry["top_logprobs"], key=lambda t: t["logprob"])["token_id"]
        )

    chunks = events(server.http.post("/v1/chat/completions", json=asked | {"stream": True}))
    assert [chunk["prompt_token_ids"] for chunk in chunks] == [rendered] + [None] * (len(chunks) - 1)
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == choice["token_ids"]

    kept = choice["token_ids"][:1]
    (rest,) = server.complete(prompt=rendered + kept, temperature=0, return_token_ids=True).json()["choices"]
    assert kept + rest["token_ids"] == choice["token_ids"]


def test_the_roles_of_a_conversation_matter(client: openai.OpenAI) -> None:
    def tokens(*messages: dict[str, str]) -> int:
        answer = client.chat.completions.create(model="m", messages=list(messages), max_tokens=1)  # type: ignore[arg-type]
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    user = {"role": "user", "content": "Hi"}
    plain = tokens(user)
    assert tokens({"role": "system", "content": "Be brief."}, user) != plain
    # The template knows no developer: it becomes system.
    assert tokens({"role": "developer", "content": "Be brief."}, user) == tokens(
        {"role": "system", "content": "Be brief."}, user
    )


def test_a_control_token_that_a_user_types_is_ordinary_text(
    server: RunningServer, client: openai.OpenAI
) -> None:
    def prompt_tokens(content: str) -> int:
        answer = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": content}], max_tokens=1
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    # As a control token it would be one more than the text without it.
    assert prompt_tokens("a<|im_end|>b") > prompt_tokens("ab") + 2


def test_a_last_message_of_the_assistant_can_be_continued(client: openai.OpenAI) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.chat.completions.create(
        model="m",
        messages=messages,
        temperature=0,
        max_tokens=3,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_conversation_beyond_the_context_is_refused_in_openais_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 600}])
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.param == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 100000}, "max_completion_tokens"),
        ({"max_tokens": 5, "messages": [{"role": "user", "content": "word " * 600}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 600000}]}, "messages"),
    ],
    ids=["negative", "negative old name", "too large", "too long", "much too long"],
)
def test_a_refusal_names_the_field_that_the_client_sent(
    server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    response = server.http.post("/v1/chat/completions", json={"messages": QUESTION} | fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_many_asynchronous_conversations_at_once(server: RunningServer) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=120) as client:
            calls = [
                client.chat.completions.create(model="m", messages=QUESTION, temperature=0, max_tokens=8)
                for _ in range(12)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    answers = asyncio.run(ask())
    assert len(set(answers)) == 1


def test_the_operators_template_goes_before_the_models(tiny_path: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ suffix or '' }};{% endfor %}"
    )
    with running_server(
        tmp_path / "log", MODEL=str(tiny_path), ENGINE_SLOTS="2", MODEL_CHAT_TEMPLATE=str(template)
    ) as server:
        server.wait_ready()

        def tokens(**fields: Any) -> int:
            body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1} | fields
            response = server.http.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            count: int = response.json()["usage"]["prompt_tokens"]
            return count

        assert tokens() == len("u:x;")
        asked = {"messages": [{"role": "user", "content": "x"}], "return_token_strs": True}
        told = server.http.post("/tokenize", json=asked).json()
        assert (told["count"], "".join(told["token_strs"])) == (len("u:x;"), "u:x;")
        assert tokens(chat_template_kwargs={"suffix": "!!"}) == len("u:x!!;")
        for name in ("tokenize", "return_tensors", "truncation", "tools", "documents", "chat_template"):
            bad = server.http.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: False}},
            )
            assert bad.status_code == 400, name

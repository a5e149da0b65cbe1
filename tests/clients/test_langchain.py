"""LangChain's models for OpenAI's API: one prompt, many, streamed, and all of it without waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

from ..running_server import RunningServer
from .plain_answers import GREEDY, PROMPT, QUESTION, SEEDED, chat, completion, texts

PROMPTS = [PROMPT, "and the rat", "in the house"]
ASKED = [QUESTION, [{"role": "system", "content": "be brief"}, *QUESTION], [{"role": "user", "content": "x"}]]
# Its n and best_of are sent with every request, and a best_of of 1 with n 2 is refused.
SEEDED_PAIRS: dict[str, Any] = SEEDED | {"best_of": 2}


@pytest.fixture
def to_server(server: RunningServer) -> Iterator[dict[str, Any]]:
    """What each model is made with. The client is ours, since LangChain never closes its own."""
    with openai.DefaultHttpxClient() as http:
        yield addressed(server) | {"http_client": http}


@asynccontextmanager
async def to_server_without_waiting(server: RunningServer) -> AsyncIterator[dict[str, Any]]:
    async with openai.DefaultAsyncHttpxClient() as http:
        with openai.DefaultHttpxClient() as unused:
            yield addressed(server) | {"http_client": unused, "http_async_client": http}


def addressed(server: RunningServer) -> dict[str, Any]:
    return {
        "base_url": f"{server.url}/v1",
        "api_key": "any",
        "model": "org/tiny",
        "timeout": 120,
        "max_retries": 0,
    }


def test_a_prompt_is_completed(server: RunningServer, to_server: dict[str, Any]) -> None:
    assert OpenAI(**to_server, **GREEDY).invoke(PROMPT) == texts(completion(server, **GREEDY))[0]


def test_many_prompts_are_one_request_whose_choices_go_to_their_prompts(
    server: RunningServer, to_server: dict[str, Any]
) -> None:
    plain = [completion(server, prompt=prompt, **SEEDED) for prompt in PROMPTS]
    result = OpenAI(**to_server, **SEEDED_PAIRS).generate(PROMPTS)
    assert [[made.text for made in pair] for pair in result.generations] == [texts(one) for one in plain]
    assert [made.generation_info["finish_reason"] for pair in result.generations for made in pair] == [
        choice["finish_reason"] for one in plain for choice in one["choices"]
    ]
    assert result.llm_output is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert result.llm_output["token_usage"][name] == sum(one["usage"][name] for one in plain)


def test_a_batch_answers_in_the_order_of_its_prompts(
    server: RunningServer, to_server: dict[str, Any]
) -> None:
    plain = [texts(completion(server, prompt=prompt, **GREEDY))[0] for prompt in PROMPTS]
    model = OpenAI(**to_server, **GREEDY)
    assert model.batch(PROMPTS) == plain
    # Two requests at a time, each of one prompt.
    assert OpenAI(**to_server, **GREEDY, batch_size=1).batch(PROMPTS) == plain


def test_the_pieces_of_a_stream_are_the_completion(server: RunningServer, to_server: dict[str, Any]) -> None:
    pieces = list(OpenAI(**to_server, **GREEDY).stream(PROMPT))
    assert len(pieces) > 3
    assert "".join(pieces) == texts(completion(server, **GREEDY))[0]


def test_a_completion_without_waiting_is_the_same(server: RunningServer) -> None:
    async def ask() -> tuple[str, list[str], list[str]]:
        async with to_server_without_waiting(server) as to_server:
            model = OpenAI(**to_server, **GREEDY)
            pieces = [piece async for piece in model.astream(PROMPT)]
            return await model.ainvoke(PROMPT), pieces, await model.abatch(PROMPTS)

    whole, pieces, batch = asyncio.run(ask())
    plain = [texts(completion(server, prompt=prompt, **GREEDY))[0] for prompt in PROMPTS]
    assert [whole, "".join(pieces), *batch] == [plain[0], plain[0], *plain]


def test_a_stop_string_ends_a_completion_before_it(server: RunningServer, to_server: dict[str, Any]) -> None:
    whole = texts(completion(server, **GREEDY))[0]
    stop = whole[4:6]
    expected = whole[: whole.index(stop)]
    model = OpenAI(**to_server, **GREEDY)
    assert model.invoke(PROMPT, stop=[stop]) == expected
    assert "".join(model.stream(PROMPT, stop=[stop])) == expected
    (made,) = model.generate([PROMPT], stop=[stop]).generations[0]
    assert made.generation_info is not None
    assert made.generation_info["finish_reason"] == "stop"


def test_a_question_is_answered(server: RunningServer, to_server: dict[str, Any]) -> None:
    plain = chat(server, **GREEDY)
    message = ChatOpenAI(**to_server, **GREEDY).invoke(QUESTION)
    assert message.content == texts(plain)[0]
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["model_name"] == "org/tiny"
    assert message.response_metadata["id"].startswith("chatcmpl-")
    assert message.usage_metadata is not None
    assert message.usage_metadata["input_tokens"] == plain["usage"]["prompt_tokens"]
    assert message.usage_metadata["output_tokens"] == plain["usage"]["completion_tokens"]


def test_two_answers_to_a_question_keep_their_order(server: RunningServer, to_server: dict[str, Any]) -> None:
    result = ChatOpenAI(**to_server, **SEEDED).generate([[HumanMessage(QUESTION[0]["content"])]])
    assert [made.text for made in result.generations[0]] == texts(chat(server, **SEEDED))


def test_many_conversations_are_answered_in_their_order(
    server: RunningServer, to_server: dict[str, Any]
) -> None:
    answers = ChatOpenAI(**to_server, **GREEDY).batch(ASKED)
    plain = [texts(chat(server, messages=messages, **GREEDY))[0] for messages in ASKED]
    assert [answer.content for answer in answers] == plain
    assert len(set(plain)) == 3


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    """As LangChain itself joins the pieces of a message."""
    whole, *rest = chunks
    for chunk in rest:
        whole += chunk
    return whole


def assert_is_the_plain_answer(chunks: list[AIMessageChunk], plain: dict[str, Any]) -> None:
    assert len(chunks) > 3
    whole = added(chunks)
    assert whole.content == texts(plain)[0]
    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] == plain["usage"]["prompt_tokens"]
    assert whole.usage_metadata["output_tokens"] == plain["usage"]["completion_tokens"]


def test_the_pieces_of_a_streamed_answer_add_up_to_the_answer_with_its_usage(
    server: RunningServer, to_server: dict[str, Any]
) -> None:
    chunks = list(ChatOpenAI(**to_server, **GREEDY, stream_usage=True).stream(QUESTION))
    assert_is_the_plain_answer(chunks, chat(server, **GREEDY))


def test_an_answer_without_waiting_is_the_same(server: RunningServer) -> None:
    async def ask() -> tuple[Any, list[AIMessageChunk], list[Any]]:
        async with to_server_without_waiting(server) as to_server:
            model = ChatOpenAI(**to_server, **GREEDY, stream_usage=True)
            chunks = [chunk async for chunk in model.astream(QUESTION)]
            return await model.ainvoke(QUESTION), chunks, await model.abatch(ASKED)

    whole, chunks, batch = asyncio.run(ask())
    plain = [chat(server, messages=messages, **GREEDY) for messages in ASKED]
    assert whole.content == texts(plain[0])[0]
    assert_is_the_plain_answer(chunks, plain[0])
    assert [answer.content for answer in batch] == [texts(one)[0] for one in plain]


def test_the_logprobs_of_an_answer_are_the_servers(server: RunningServer, to_server: dict[str, Any]) -> None:
    plain = chat(server, **GREEDY, logprobs=True, top_logprobs=2)
    message = ChatOpenAI(**to_server, **GREEDY, logprobs=True, top_logprobs=2).invoke(QUESTION)
    told = [token["logprob"] for token in message.response_metadata["logprobs"]["content"]]
    assert told == [token["logprob"] for token in plain["choices"][0]["logprobs"]["content"]]
    assert len(told) == GREEDY["max_tokens"]


def test_a_prompt_beyond_the_context_is_openais_error(to_server: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        OpenAI(**to_server, **GREEDY).invoke("cat " * 600)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as raised:
        ChatOpenAI(**to_server, **GREEDY).invoke("cat " * 600)
    assert raised.value.code == "context_length_exceeded"

"""OpenAI's client for Python, waiting and not: what a user of it sees beside the text."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ..running_server import RunningServer
from .plain_answers import GREEDY, PROMPT, QUESTION, SEEDED, chat, completion, texts

# More than the slot and the queue of the narrow server can give in any test's time.
ENDLESS: dict[str, Any] = {"model": "org/tiny", "prompt": PROMPT, "max_tokens": 30000}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def narrow_client(narrow_server: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{narrow_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="the-key", max_retries=0, timeout=120) as client:
        yield client
    narrow_server.wait_for(lambda health: health["outstanding"] == 0, 30)


def test_a_null_is_the_default(server: RunningServer, client: openai.OpenAI) -> None:
    both = ["frequency_penalty", "logit_bias", "logprobs", "n", "presence_penalty", "seed", "stop"]
    both += ["stream_options", "top_p", "user"]
    of_completions = ["best_of", "echo", "suffix"]
    of_chat = ["function_call", "functions", "max_completion_tokens", "parallel_tool_calls"]
    of_chat += ["response_format", "tool_choice", "tools", "top_logprobs"]
    answer = client.completions.create(
        model="m", prompt=PROMPT, **GREEDY, **dict.fromkeys(both + of_completions)
    )
    assert [choice.text for choice in answer.choices] == texts(completion(server, **GREEDY))
    answered = client.chat.completions.create(
        model="m", messages=QUESTION, **GREEDY, **dict.fromkeys(both + of_chat)
    )
    assert [choice.message.content for choice in answered.choices] == texts(chat(server, **GREEDY))


def test_a_null_for_max_tokens_is_the_default_too(server: RunningServer, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt=PROMPT, temperature=0, max_tokens=None)
    assert [choice.text for choice in answer.choices] == texts(completion(server, temperature=0))


def test_each_answer_tells_the_request_it_answers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "m", "prompt": PROMPT, **GREEDY}
    raw = client.completions.with_raw_response.create(**asked)
    assert raw.request_id
    assert raw.request_id == raw.headers["x-request-id"]
    assert float(raw.headers["openai-processing-ms"]) >= 0
    parsed = raw.parse()
    assert parsed._request_id == raw.request_id
    again = client.completions.create(**asked)
    assert again._request_id not in (None, raw.request_id)
    assert again.id != parsed.id
    mine = client.completions.create(**asked, extra_headers={"X-Request-ID": "mine-1"})
    assert mine._request_id == "mine-1"


def test_an_error_tells_its_request_and_what_was_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="m", prompt=PROMPT, temperature=5)
    assert raised.value.param == "temperature"
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id
    assert "temperature" in raised.value.message


def test_a_models_id_may_hold_a_slash(client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert listed.id == "org/tiny"
    assert listed.object == "model"
    assert client.models.retrieve("org/tiny") == listed
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("org/none")
    assert raised.value.code == "model_not_found"


def test_token_ids_give_what_their_text_gives(server: RunningServer, client: openai.OpenAI) -> None:
    prompts = [PROMPT, "and the rat"]
    ids = [server.http.post("/tokenize", json={"prompt": prompt}).json()["tokens"] for prompt in prompts]
    plain = texts(completion(server, prompt=prompts, **GREEDY))
    assert plain[0] != plain[1]
    both = client.completions.create(model="m", prompt=ids, **GREEDY)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert [choice.text for choice in both.choices] == plain
    assert both.usage is not None
    assert both.usage.prompt_tokens == len(ids[0]) + len(ids[1])
    one = client.completions.create(model="m", prompt=ids[1], **GREEDY)
    assert [choice.text for choice in one.choices] == plain[1:]


def test_the_choices_of_each_prompt_stand_together(server: RunningServer, client: openai.OpenAI) -> None:
    prompts = [PROMPT, "and the rat"]
    answer = client.completions.create(model="m", prompt=prompts, **SEEDED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = [texts(completion(server, prompt=prompt, **SEEDED)) for prompt in prompts]
    assert [choice.text for choice in answer.choices] == alone[0] + alone[1]
    assert len({choice.text for choice in answer.choices}) == 4


def test_the_prompts_own_logprobs_come_as_typed_lists(server: RunningServer, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="m", prompt=PROMPT, max_tokens=3, temperature=0, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text.startswith(PROMPT)
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.text_offset is not None
    assert "".join(told.tokens) == choice.text
    assert answer.usage is not None
    assert len(told.tokens) == answer.usage.prompt_tokens + 3
    assert answer.usage.completion_tokens == 3
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    for offset, token, logprob, top in list(
        zip(told.text_offset, told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
    )[1:]:
        assert choice.text.startswith(token, offset)
        # By value: the piece of a character has no text of its own to be found by.
        assert logprob in top.values()
        # One where both are pieces of characters, three where the token is none of the two.
        assert 1 <= len(top) <= 3
        assert logprob <= max(top.values()) <= 0


def test_without_waiting_the_stream_says_what_the_answer_says(server: RunningServer) -> None:
    async def both() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=120) as client:
            asked: dict[str, Any] = {"model": "m", "prompt": PROMPT, **SEEDED}
            plain = await client.completions.create(**asked)
            stream = await client.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            return plain, [chunk async for chunk in stream]

    plain, (*chunks, last) = asyncio.run(both())
    expected = completion(server, **SEEDED)
    assert [choice.text for choice in plain.choices] == texts(expected)
    streamed = ["", ""]
    for chunk in chunks:
        (choice,) = chunk.choices
        assert chunk.usage is None
        streamed[choice.index] += choice.text
    assert streamed == texts(expected)
    assert [last.usage.prompt_tokens, last.usage.completion_tokens] == [
        expected["usage"]["prompt_tokens"],
        expected["usage"]["completion_tokens"],
    ]
    assert plain.usage.total_tokens == last.usage.total_tokens == expected["usage"]["total_tokens"]


def test_a_client_that_closes_its_stream_frees_the_slot(
    narrow_server: RunningServer, narrow_client: openai.OpenAI
) -> None:
    with narrow_client.completions.create(**ENDLESS, stream=True) as stream:
        for _ in range(3):
            next(stream)
        assert narrow_server.health()["outstanding"] == 1
    narrow_server.wait_for(lambda health: health["outstanding"] == 0, 10)


def test_a_task_that_is_cancelled_frees_the_slot(narrow_server: RunningServer) -> None:
    async def leave() -> None:
        url = f"{narrow_server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="the-key", max_retries=0, timeout=120) as client:
            asking = asyncio.create_task(client.completions.create(**ENDLESS))
            await asyncio.to_thread(narrow_server.wait_for, lambda health: health["outstanding"] == 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.to_thread(narrow_server.wait_for, lambda health: health["outstanding"] == 0)

    asyncio.run(leave())


def test_a_client_whose_patience_ends_frees_the_slot(
    narrow_server: RunningServer, narrow_client: openai.OpenAI
) -> None:
    with pytest.raises(openai.APITimeoutError):
        narrow_client.with_options(timeout=0.5).completions.create(**ENDLESS)
    narrow_server.wait_for(lambda health: health["outstanding"] == 0, 10)


class Refusals:
    """Two streams that hold all places of the narrow server until a client has been refused once."""

    def __init__(self, server: RunningServer, client: openai.OpenAI) -> None:
        self.statuses: list[int] = []
        self.retry_after = 0.0
        self.refused = threading.Event()
        self.holder = threading.Thread(target=self._hold, args=(client,))
        self.holder.start()
        server.wait_for(lambda health: health["outstanding"] == 2, 30)

    def _hold(self, client: openai.OpenAI) -> None:
        with client.completions.create(**ENDLESS, n=2, stream=True) as stream:
            for _ in stream:
                if self.refused.is_set():
                    return

    def see(self, response: Any) -> None:
        self.statuses.append(response.status_code)
        if response.status_code == 429:
            self.retry_after = float(response.headers["retry-after"])
            self.refused.set()


def test_a_client_that_is_refused_comes_back_when_it_was_told_to(
    narrow_server: RunningServer, narrow_client: openai.OpenAI
) -> None:
    refusals = Refusals(narrow_server, narrow_client)
    try:
        with openai.DefaultHttpxClient(event_hooks={"response": [refusals.see]}) as http:
            patient = narrow_client.with_options(max_retries=2, http_client=http)
            started = time.monotonic()
            answer = patient.completions.create(model="org/tiny", prompt=PROMPT, **GREEDY)
            waited = time.monotonic() - started
    finally:
        refusals.refused.set()
        refusals.holder.join()
    assert refusals.statuses == [429, 200]
    assert waited >= refusals.retry_after >= 1
    assert len(answer.choices) == 1


def test_a_client_that_may_not_come_back_is_told_why(
    narrow_server: RunningServer, narrow_client: openai.OpenAI
) -> None:
    refusals = Refusals(narrow_server, narrow_client)
    try:
        with pytest.raises(openai.RateLimitError) as raised:
            narrow_client.completions.create(model="org/tiny", prompt=PROMPT, **GREEDY)
    finally:
        refusals.refused.set()
        refusals.holder.join()
    assert raised.value.code == "queue_full"


def test_a_wrong_key_and_a_wrong_model_have_their_own_errors(narrow_client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        narrow_client.with_options(api_key="another").models.list()
    assert raised.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as not_found:
        narrow_client.completions.create(model="org/none", prompt=PROMPT)
    assert not_found.value.code == "model_not_found"

"""T5 and BART behind the real server, trained in this run to write numbers as words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from ..number_words import save_trained, tokenizer, words
from ..running_server import RunningServer, running_server
from ..server.test_api import error, events, streamed_texts

NUMBERS = [0, 7, 13, 20, 42, 58, 71, 99]


@pytest.fixture(scope="module", params=["t5", "bart"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp(request.param)
    model = save_trained(directory / "model", request.param)
    with running_server(
        directory / "log",
        MODEL=str(model),
        MODEL_DTYPE="float32",
        ENGINE_SLOTS="8",
        ENGINE_CONTEXT_LENGTH="64",
    ) as server:
        yield server.wait_ready()


def test_eight_streams_at_once_are_all_answered_right(server: RunningServer) -> None:
    barrier = threading.Barrier(len(NUMBERS))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:

        def ask(number: int) -> tuple[str, str | None, int]:
            barrier.wait()
            stream = client.completions.create(
                model="any", prompt=str(number), max_tokens=30, temperature=0, stream=True
            )
            chunks = [chunk.choices[0] for chunk in stream]
            return "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason, len(chunks)

        with ThreadPoolExecutor(len(NUMBERS)) as threads:
            answers = list(threads.map(ask, NUMBERS))
    assert [text for text, _, _ in answers] == [words(number) for number in NUMBERS]
    assert {reason for _, reason, _ in answers} == {"stop"}
    assert max(count for _, _, count in answers) > 3, "nothing was streamed"


def test_models_tell_that_the_completion_is_a_text_of_its_own(server: RunningServer) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["capabilities"] == {"chat": False, "infilling": False, "continuation": False}


def test_all_numbers_are_answered_right_in_one_request(server: RunningServer) -> None:
    body = server.complete(prompt=[str(n) for n in range(100)], max_tokens=30, temperature=0).json()
    assert [choice["text"] for choice in body["choices"]] == [words(number) for number in range(100)]
    text = tokenizer()
    assert body["usage"]["prompt_tokens"] == sum(len(text(str(n))["input_ids"]) for n in range(100))
    assert body["usage"]["completion_tokens"] == sum(len(text(words(n))["input_ids"]) for n in range(100))


def test_a_stream_with_a_seed_is_the_plain_text(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": ["31", "8"], "n": 2, "temperature": 1.8, "seed": 4, "max_tokens": 20}
    plain = {c["index"]: c["text"] for c in server.complete(**fields).json()["choices"]}
    assert streamed_texts(server.complete(**fields, stream=True)) == plain


def test_an_echoed_prompt_is_not_scored_and_never_has_zeros(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "42", "max_tokens": 20, "temperature": 0, "echo": True, "logprobs": 2}
    choice = server.complete(**fields).json()["choices"][0]
    told = choice["logprobs"]
    assert choice["text"] == "42" + words(42)
    assert "".join(told["tokens"]) == choice["text"]
    prompt = len(tokenizer()("42")["input_ids"])
    assert told["token_logprobs"][:prompt] == [None] * prompt
    assert told["top_logprobs"][:prompt] == [None] * prompt
    assert all(-1 < logprob < 0 for logprob in told["token_logprobs"][prompt:])
    assert told["text_offset"][prompt] == 2
    chunks = [event["choices"][0] for event in events(server.complete(**fields, stream=True))]
    assert {key: [x for chunk in chunks for x in chunk["logprobs"][key]] for key in told} == told


def test_an_echo_without_a_completion_has_the_prompts_tokens(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "42", "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = server.complete(**fields).json()["choices"][0]
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == "42"
    assert set(choice["logprobs"]["token_logprobs"]) == {None}


def test_prompt_and_completion_have_a_context_each(server: RunningServer) -> None:
    digits = "1" * 63
    assert server.complete(prompt=digits, max_tokens=64, ignore_eos=True, temperature=0).json()["usage"] == {
        "prompt_tokens": 64,
        "completion_tokens": 64,
        "total_tokens": 128,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    for fields, param in (
        ({"prompt": digits + "1", "max_tokens": 1}, "prompt"),
        ({"prompt": "1", "max_tokens": 65}, "max_tokens"),
    ):
        refused = error(server.complete(**fields), 400)
        assert (refused["code"], refused["param"]) == ("context_length_exceeded", param)
        assert refused["message"].startswith("This model's maximum context length is 64 tokens. However, ")


def test_a_stop_string_and_a_bias_work_on_it_too(server: RunningServer) -> None:
    stopped = server.complete(prompt="42", max_tokens=20, temperature=0, stop="-").json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("forty", "stop")
    letter = tokenizer().convert_tokens_to_ids("f")
    forbidden = server.complete(prompt="42", max_tokens=20, temperature=0, logit_bias={str(letter): -100})
    assert not forbidden.json()["choices"][0]["text"].startswith("f")


def test_a_client_that_leaves_frees_its_slot(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "5", "max_tokens": 64, "ignore_eos": True, "n": 8, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=fields) as response:
        next(response.iter_lines())
    server.wait_for(lambda health: health["outstanding"] == 0, 5)
    assert server.stats()["running"] == 0


def test_the_log_tells_the_runner_and_why(server: RunningServer) -> None:
    log = server.log.read_text()
    assert "is an encoder-decoder model" in log
    assert "runner='padded'" in log

"""`suffix`, on a server whose tokenizer has the tokens for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..running_server import RunningServer, running_server
from ..tiny_models import BOS, save_tiny, tiny_tokenizer
from .test_api import error, streamed_texts

MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>")
PREFIX, SUFFIX, MIDDLE, PAD = 2, 3, 4, 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its tokenizer puts BOS before a text, as Code Llama's does."""
    path = tmp_path_factory.mktemp("infilling")
    model = save_tiny(path / "model", eos=None, special=MARKS)
    tokenizer = tiny_tokenizer(MARKS)
    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    tokenizer.save_pretrained(model)
    with running_server(path / "log", MODEL=str(model), ENGINE_SLOTS="2", MODEL_DTYPE="float32") as server:
        yield server.wait_ready()


def ids(server: RunningServer, text: str) -> list[int]:
    asked = {"prompt": text, "add_special_tokens": False}
    tokens: list[int] = server.http.post("/tokenize", json=asked).json()["tokens"]
    return tokens


def test_models_tell_that_the_model_fills_in(server: RunningServer) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["capabilities"] == {"chat": False, "infilling": True, "continuation": True}


def test_a_text_gets_the_tokenizers_special_tokens_and_token_ids_none(server: RunningServer) -> None:
    assert server.complete(prompt="the cat", max_tokens=1).json()["usage"]["prompt_tokens"] == 1 + len(
        ids(server, "the cat")
    )
    given = ids(server, "the cat")
    assert server.complete(prompt=given, max_tokens=1).json()["usage"]["prompt_tokens"] == len(given)
    told = server.http.post("/tokenize", json={"prompt": "the cat"}).json()["tokens"]
    assert told == [BOS, *given]


def test_a_suffix_is_infilling_and_not_a_longer_prompt(server: RunningServer) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    filled = server.complete(prompt="the cat", suffix=" the mat", **fields).json()
    by_hand = [BOS, PREFIX, *ids(server, "the cat"), SUFFIX, *ids(server, " the mat"), MIDDLE]
    assert (
        filled["choices"][0]["text"]
        == server.complete(prompt=by_hand, stop_token_ids=[PAD], **fields).json()["choices"][0]["text"]
    )
    assert filled["usage"]["prompt_tokens"] == len(by_hand)
    plain = server.complete(prompt="the cat", **fields).json()["choices"][0]["text"]
    assert filled["choices"][0]["text"] != plain


def test_an_infilling_streams_and_echoes_its_prefix(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "the cat", "suffix": " mat", "max_tokens": 12, "temperature": 0}
    plain = server.complete(**fields).json()["choices"][0]["text"]
    assert streamed_texts(server.complete(**fields, stream=True)) == {0: plain}
    assert server.complete(**fields, echo=True).json()["choices"][0]["text"] == "the cat" + plain


def test_token_ids_and_no_prompt_at_all_can_be_completed_before_a_suffix(server: RunningServer) -> None:
    fields: dict[str, Any] = {"suffix": " mat", "max_tokens": 8, "temperature": 0}
    given = ids(server, "the cat")
    by_ids = server.complete(prompt=given, **fields).json()
    by_hand = [PREFIX, *given, SUFFIX, *ids(server, " mat"), MIDDLE]
    assert by_ids["usage"]["prompt_tokens"] == len(by_hand), "token ids get no BOS"
    text = server.complete(prompt=by_hand, stop_token_ids=[PAD], max_tokens=8, temperature=0).json()[
        "choices"
    ][0]["text"]
    assert by_ids["choices"][0]["text"] == text
    absent = server.complete(**fields).json()
    assert absent["usage"]["prompt_tokens"] == 4 + len(ids(server, " mat"))


def test_offsets_count_from_the_end_of_the_prefix(server: RunningServer) -> None:
    told = server.complete(prompt="the cat", suffix="x", max_tokens=4, logprobs=0).json()["choices"][0]
    assert told["logprobs"]["text_offset"][0] == len("the cat")
    assert "".join(told["logprobs"]["tokens"]) == told["text"]


def test_an_empty_suffix_is_none(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "the cat", "max_tokens": 8, "temperature": 0}
    empty = server.complete(**fields, suffix="").json()["choices"][0]["text"]
    assert empty == server.complete(**fields).json()["choices"][0]["text"]


def test_a_model_that_cannot_fill_in_refuses_by_name(tiny_server: RunningServer) -> None:
    refused = error(tiny_server.complete(prompt="a", suffix="b"), 400)
    assert (refused["param"], refused["code"]) == ("suffix", "unsupported_parameter")

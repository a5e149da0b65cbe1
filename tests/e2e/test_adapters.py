"""Adapters behind the real server and in the library: each is a model of its own, by its name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from basaran_ops import load_model
from basaran_ops.errors import ModelLoadError, ModelNotFound
from basaran_ops.model import LibraryModel

from ..running_server import RunningServer, running_server
from ..server.test_api import error, events
from ..tiny_adapters import adapted, save_adapter
from ..tiny_models import generate, tiny_tokenizer

NAMES = ("org/first", "second-v1.5")
PROMPTS = ["the cat", "and the hat; the rat that ate", "stout"]
LENGTH = 24


@pytest.fixture(scope="module")
def adapters(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(tiny_path)
    return {name: save_adapter(directory / str(seed), model, seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def texts(tiny_path: Path, adapters: dict[str, Path]) -> dict[tuple[str | None, str], str]:
    """What generate() says for each model, alone, and prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_path), tiny_tokenizer()
    models = {None: model} | {name: adapted(model, path) for name, path in adapters.items()}

    def say(model: PreTrainedModel, prompt: str) -> str:
        tokens = generate(model, tuple(tokenizer.encode(prompt)), LENGTH)
        return tokenizer.decode(tokens, skip_special_tokens=True)

    return {(name, prompt): say(models[name], prompt) for name in models for prompt in PROMPTS}


@pytest.fixture(scope="module")
def server(
    tiny_path: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("server")
    (directory / "template").write_text("{{ messages[0]['content'] }}")
    with running_server(
        directory / "log",
        MODEL=str(tiny_path),
        MODEL_ADAPTERS=",".join(f"{name}={path}" for name, path in adapters.items()),
        MODEL_CHAT_TEMPLATE=str(directory / "template"),
        MODEL_DTYPE="float32",
        ENGINE_SLOTS="6",
        SERVER_MODEL_NAME="org/tiny",
        SERVER_STRICT_MODEL="true",
        LOG_FORMAT="json",
    ) as server:
        yield server.wait_ready()


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def test_the_model_and_its_adapters_stream_at_once_each_its_own_text(
    client: openai.OpenAI, texts: dict[tuple[str | None, str], str]
) -> None:
    asked = list(texts)
    assert len(set(texts.values())) == len(texts) == 9
    barrier = threading.Barrier(len(asked))

    def ask(name: str | None, prompt: str) -> tuple[str, set[str]]:
        barrier.wait()
        stream = client.completions.create(
            model=name or "org/tiny", prompt=prompt, max_tokens=LENGTH, temperature=0, stream=True
        )
        chunks = list(stream)
        return "".join(chunk.choices[0].text for chunk in chunks), {chunk.model for chunk in chunks}

    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda pair: ask(*pair), asked))
    for (name, prompt), (text, models) in zip(asked, answers, strict=True):
        assert text == texts[name, prompt]
        assert models == {name or "org/tiny"}


def test_a_plain_answer_is_told_under_the_adapters_name(
    server: RunningServer, texts: dict[tuple[str | None, str], str]
) -> None:
    fields: dict[str, Any] = {"prompt": PROMPTS, "max_tokens": LENGTH, "temperature": 0}
    for name in (*NAMES, None):
        body = server.complete(**fields, **({"model": name} if name else {})).json()
        assert [choice["text"] for choice in body["choices"]] == [texts[name, prompt] for prompt in PROMPTS]
        assert body["model"] == (name or "org/tiny")


def test_log_probabilities_are_the_adapters_own(server: RunningServer) -> None:
    fields: dict[str, Any] = {"prompt": "the cat", "max_tokens": 0, "echo": True, "logprobs": 0}
    told = [
        server.complete(model=name, **fields).json()["choices"][0]["logprobs"]["token_logprobs"]
        for name in ("org/tiny", *NAMES)
    ]
    assert len({tuple(numbers) for numbers in told}) == 3


def test_adapters_are_listed_with_the_model_as_their_parent(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [(model.id, model.parent) for model in listed] == [  # type: ignore[attr-defined]
        ("org/tiny", None),
        ("org/first", "org/tiny"),
        ("second-v1.5", "org/tiny"),
    ]
    assert [client.models.retrieve(model.id) for model in listed] == listed


def test_strict_names_are_the_models_and_its_adapters(server: RunningServer, client: openai.OpenAI) -> None:
    for path, fields in (
        ("/v1/completions", {"prompt": "the cat", "max_tokens": 1}),
        ("/tokenize", {"prompt": "the cat"}),
        ("/detokenize", {"tokens": [5]}),
    ):
        for name in ("org/tiny", *NAMES):
            assert server.http.post(path, json=fields | {"model": name}).status_code == 200
        refused = error(server.http.post(path, json=fields | {"model": "org/second"}), 404)
        assert (refused["code"], refused["param"]) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/second")


def test_an_adapter_chats(server: RunningServer, texts: dict[tuple[str | None, str], str]) -> None:
    for name in (None, *NAMES):
        fields = {"model": name or "org/tiny", "temperature": 0, "max_tokens": LENGTH}
        fields["messages"] = [{"role": "user", "content": "the cat"}]
        answer = server.http.post("/v1/chat/completions", json=fields).json()
        assert answer["choices"][0]["message"]["content"] == texts[name, "the cat"]
        streamed = server.http.post("/v1/chat/completions", json=fields | {"stream": True})
        assert {chunk["model"] for chunk in events(streamed)} == {answer["model"]} == {name or "org/tiny"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: (path / "adapter_config.json").unlink(), "there is no adapter_config.json in "),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"short"), "SafetensorError"),
    ],
)
def test_a_broken_adapter_ends_the_server_with_one_clear_line(
    change: Any, told: str, tiny_path: Path, tmp_path: Path
) -> None:
    path = save_adapter(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(tiny_path), 1)
    change(path)
    settings = {"MODEL": str(tiny_path), "MODEL_ADAPTERS": f"fr={path}", "LOG_FORMAT": "json"}
    with running_server(tmp_path / "log", **settings) as server:
        assert server.process.wait(60) == 3
    log = server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    errors = [line["event"] for line in lines if line["level"] == "error"]
    assert errors[0].startswith(f"the model cannot be loaded: MODEL_ADAPTERS: fr={path}: {told}")
    assert "Traceback" not in log


def test_the_log_of_a_server_with_adapters_is_free_of_the_libraries_advice(server: RunningServer) -> None:
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] not in ("info", "debug")] == []


@pytest.fixture(scope="module")
def library(tiny_path: Path, adapters: dict[str, Path]) -> Iterator[LibraryModel]:
    with load_model(str(tiny_path), adapters=adapters, model_dtype="float32", engine_slots=4) as model:
        yield model


def test_the_library_generates_with_adapters_too(
    library: LibraryModel, texts: dict[tuple[str | None, str], str]
) -> None:
    for (name, prompt), text in texts.items():
        pieces = library(prompt, adapter=name, max_tokens=LENGTH, temperature=0)
        assert "".join(piece["text"] for piece in pieces) == text
    with pytest.raises(ModelNotFound):
        library("the cat", adapter="none")


def test_the_library_tells_of_a_broken_adapter(tiny_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="MODEL_ADAPTERS: fr=/no/such: no such directory"):
        load_model(str(tiny_path), model_adapters="fr=/no/such")

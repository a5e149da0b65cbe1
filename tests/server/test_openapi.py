from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from basaran_ops.server.openapi import describe
from basaran_ops.server.protocol import ChatRequest, CompletionRequest
from basaran_ops.settings import Settings

from ..running_server import RunningServer
from .test_api import events

SETTINGS = Settings()


def validator(name: str) -> jsonschema.Draft202012Validator:
    document = describe(SETTINGS)
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}"} | {"components": document["components"]}
    )


def test_the_document_names_every_route_of_the_app(tiny_server: RunningServer) -> None:
    served = tiny_server.http.get("/openapi.json").json()
    assert served == describe(SETTINGS)
    assert set(served["paths"]) == {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/health",
    }


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest])
def test_every_field_that_is_validated_is_described(model: type[CompletionRequest]) -> None:
    schema = describe(SETTINGS)["components"]["schemas"][model.__name__]
    assert set(schema["properties"]) == set(model.model_fields)
    nulls = {name: None for name in model.model_fields if name not in schema.get("required", [])}
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if model is ChatRequest else {}
    validator(model.__name__).validate(nulls | base)


@pytest.mark.parametrize(
    "fields", [{"prompt": []}, {"prompt": [True]}, {"stop": ""}, {"n": "1"}, {"echo": 1}], ids=str
)
def test_what_is_refused_for_its_type_is_no_instance_of_the_schema(fields: dict[str, Any]) -> None:
    assert not validator("CompletionRequest").is_valid(fields)


def test_the_operators_limits_are_the_largest_values() -> None:
    settings = Settings(
        completion_max_n=3, completion_max_logprobs=2, completion_max_tokens=50, completion_max_prompt=9
    )
    schemas = describe(settings)["components"]["schemas"]
    told = {
        (name, field): schemas[name]["properties"][field]["maximum"]
        for name in ("CompletionRequest", "ChatRequest")
        for field in ("n", "best_of", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens")
        if "maximum" in schemas[name]["properties"].get(field, {})
    }
    assert told == {
        ("CompletionRequest", "n"): 3,
        ("CompletionRequest", "best_of"): 3,
        ("CompletionRequest", "logprobs"): 2,
        ("CompletionRequest", "max_tokens"): 50,
        ("ChatRequest", "n"): 3,
        ("ChatRequest", "top_logprobs"): 2,
        ("ChatRequest", "max_tokens"): 50,
        ("ChatRequest", "max_completion_tokens"): 50,
    }
    assert {"type": "string", "maxLength": 9} in schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]


@pytest.mark.parametrize(
    ("settings", "asks"),
    [({}, False), ({"server_api_keys": " , "}, False), ({"server_api_keys": "k"}, True),
     ({"server_api_keys_file": "/keys"}, True)],
    ids=str,
)  # fmt: skip
def test_the_document_says_whether_a_key_is_asked_for(settings: dict[str, Any], asks: bool) -> None:
    security = describe(Settings(**settings))["security"]
    assert security == ([{"key": []}] if asks else [{}, {"key": []}])


def test_answers_are_instances_of_their_schemas(tiny_server: RunningServer) -> None:
    asked = {"prompt": "the cat", "max_tokens": 3, "logprobs": 2, "echo": True, "n": 2}
    validator("Completion").validate(tiny_server.complete(**asked).json())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in events(tiny_server.complete(**asked, **options)):
        validator("CompletionChunk").validate(chunk)
    validator("Error").validate(tiny_server.complete(prompt=[]).json())
    for path, name in (
        ("/v1/models", "ModelList"),
        ("/health", "Health"),
        ("/tokenizer_info", "TokenizerInfo"),
    ):
        validator(name).validate(tiny_server.http.get(path).json())
    tokens = tiny_server.http.post("/tokenize", json={"prompt": "cat"}).json()
    validator("Tokens").validate(tokens)
    validator("Text").validate(tiny_server.http.post("/detokenize", json={"tokens": tokens["tokens"]}).json())

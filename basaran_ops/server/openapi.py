"""GET /openapi.json: the API's description, made from the models that validate its requests."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..settings import Settings
from .protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .service import service

blueprint = Blueprint("openapi", __name__)

REQUESTS: dict[str, tuple[type[BaseModel], str, tuple[str, ...]]] = {
    "/v1/completions": (CompletionRequest, "Complete one or more prompts", ("Completion", "CompletionChunk")),
    "/v1/chat/completions": (ChatRequest, "Answer a conversation", ("ChatCompletion", "ChatCompletionChunk")),
    "/tokenize": (TokenizeRequest, "Token ids of a text or a conversation", ("Tokens",)),
    "/detokenize": (DetokenizeRequest, "Text of token ids", ("Text",)),
}
"""Path: its body, what it does, what it answers: whole and, where there is one, streamed."""

ANSWERS = {
    "/v1/models": ("The served model and its adapters", "ModelList"),
    "/v1/models/{model}": ("The served model, or one of its adapters", "Model"),
    "/health": ("Whether requests are taken", "Health"),
    "/tokenizer_info": ("What a client must know to encode as the server does", "TokenizerInfo"),
}

ERRORS = {
    "400": "The request can never succeed as it is; `param` names the field at fault",
    "401": "No API key, or one that is not ours",
    "404": "No such model",
    "413": "The body is too large",
    "429": "All slots are busy and the queue is full; see Retry-After",
    "500": "The engine failed",
    "503": "Loading, draining, or no engine is running; see Retry-After",
}


def describe(settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server with these settings: its limits, and whether it asks for a key."""
    models = [(model, "validation") for model, _, _ in REQUESTS.values()]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    described = {name: _nullable(schema) for name, schema in definitions["$defs"].items()}
    schemas = {name: _limited(schema, settings) for name, schema in described.items()} | RESPONSES
    paths: dict[str, Any] = {
        path: {"post": _post(model.__name__, summary, answers)}
        for path, (model, summary, answers) in REQUESTS.items()
    }
    paths |= {path: {"get": _get(path, *answer)} for path, answer in ANSWERS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "basaran_ops", "version": version("basaran-ops")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if settings.asks_for_key else [{}, {"key": []}],
    }


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """The API's own description."""
    return jsonify(describe(service().settings))


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Every optional field may be null, which means its default."""
    required = schema.get("required", [])
    properties = {
        name: field
        if name in required or field.get("type", "null") == "null"
        else field | {"type": [field["type"], "null"]}
        for name, field in schema.get("properties", {}).items()
    }
    return schema | {"properties": properties}


def _limited(schema: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The operator's limits, as the largest value of each field that has one."""
    limits = {
        "n": settings.completion_max_n,
        "best_of": settings.completion_max_n,
        "logprobs": settings.completion_max_logprobs,
        "top_logprobs": settings.completion_max_logprobs,
        "max_tokens": settings.completion_max_tokens,
        "max_completion_tokens": settings.completion_max_tokens,
    }
    properties = {
        name: field | {"maximum": limits[name]}
        if limits.get(name) is not None and "integer" in field.get("type", "")
        else field
        for name, field in schema.get("properties", {}).items()
    }
    if settings.completion_max_prompt is not None and "anyOf" in (prompt := properties.get("prompt", {})):
        branches = [
            branch | ({"maxLength": settings.completion_max_prompt} if branch.get("type") == "string" else {})
            for branch in prompt["anyOf"]
        ]
        properties["prompt"] = prompt | {"anyOf": branches}
    return schema | {"properties": properties}


def _post(body: str, summary: str, answers: tuple[str, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref(answers[0])}}
    if len(answers) > 1:
        description = f"JSON of {answers[1]}, or of Error; the last is [DONE]"
        content["text/event-stream"] = {"schema": _object(data=STRING | {"description": description})}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {"200": {"description": "Done", "content": content}} | _errors(*ERRORS),
    }


def _get(path: str, summary: str, answer: str) -> dict[str, Any]:
    ok = {"description": summary, "content": {"application/json": {"schema": _ref(answer)}}}
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": ok} | _errors("401", "503")}
    if path == "/health":
        operation["responses"]["503"] = ok | {"description": "Not ready"}
    if "{model}" in path:
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
        operation["responses"] |= _errors("404")
    return operation


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {status: {"description": ERRORS[status], "content": content} for status in statuses}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))
MAYBE_STRING: dict[str, Any] = {"type": ["string", "null"]}
MAYBE_INTEGER: dict[str, Any] = {"type": ["integer", "null"]}
REASON = {"enum": ["stop", "length", None]}
USAGE = _object(
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
    total_tokens=INTEGER,
    prompt_tokens_details=_object(cached_tokens=INTEGER),
)
MAYBE_USAGE = {"anyOf": [USAGE, {"type": "null"}]}
MODEL = _object(
    id=STRING,
    object={"const": "model"},
    created=INTEGER,
    owned_by=STRING,
    max_model_len=MAYBE_INTEGER,
    parent=MAYBE_STRING | {"description": "For an adapter the id of the model that it changes, else null"},
    capabilities={
        "anyOf": [_object(chat=BOOLEAN, infilling=BOOLEAN, continuation=BOOLEAN), {"type": "null"}],
        "description": "Whether it has a chat template, takes a suffix, and goes on where the prompt ends; "
        "null while it loads",
    },
)

COMPLETION_LOGPROBS = _object(
    tokens=_array(STRING),
    token_logprobs=_array({"type": ["number", "null"]}),
    top_logprobs=_array({"type": ["object", "null"], "additionalProperties": NUMBER}),
    text_offset=_array(INTEGER),
)
COMPLETION_CHOICE = _object(
    text=STRING,
    index=INTEGER,
    logprobs={"anyOf": [COMPLETION_LOGPROBS, {"type": "null"}]},
    finish_reason=REASON,
)
COMPLETION = {
    "id": STRING,
    "object": {"const": "text_completion"},
    "created": INTEGER,
    "model": STRING,
    "choices": _array(COMPLETION_CHOICE),
}

CHAT_TOKEN = {"token": STRING, "logprob": NUMBER, "bytes": _array(INTEGER)}
CHAT_LOGPROBS = _object(
    content=_array(_object(**CHAT_TOKEN, top_logprobs=_array(_object(**CHAT_TOKEN)))), refusal=MAYBE_STRING
)
CHAT_CHOICE = {
    "index": INTEGER,
    "logprobs": {"anyOf": [CHAT_LOGPROBS, {"type": "null"}]},
    "finish_reason": REASON,
}
CHAT_MESSAGE = _object(role={"const": "assistant"}, content=STRING, refusal=MAYBE_STRING)
CHAT = {"id": STRING, "created": INTEGER, "model": STRING}

RESPONSES: dict[str, Any] = {
    "Error": _object(error=_object(message=STRING, type=STRING, param=MAYBE_STRING, code=MAYBE_STRING)),
    "Completion": _object(**COMPLETION, usage=USAGE),
    "CompletionChunk": _object(**COMPLETION) | {"properties": COMPLETION | {"usage": MAYBE_USAGE}},
    "ChatCompletion": _object(
        **CHAT,
        object={"const": "chat.completion"},
        choices=_array(_object(**CHAT_CHOICE, message=CHAT_MESSAGE)),
        usage=USAGE,
    ),
    "ChatCompletionChunk": _object(
        **CHAT,
        object={"const": "chat.completion.chunk"},
        choices=_array(_object(**CHAT_CHOICE, delta={"type": "object"})),
    ),
    "Tokens": _object(
        tokens=_array(INTEGER),
        count=INTEGER,
        max_model_len=MAYBE_INTEGER,
        token_strs={"anyOf": [_array(STRING), {"type": "null"}]},
    ),
    "Text": _object(prompt=STRING),
    "TokenizerInfo": _object(
        tokenizer_class=STRING,
        vocab_size=INTEGER,
        bos_token=MAYBE_STRING,
        eos_token=MAYBE_STRING,
        pad_token=MAYBE_STRING,
        unk_token=MAYBE_STRING,
        chat_template=MAYBE_STRING,
    ),
    "Model": MODEL,
    "ModelList": _object(object={"const": "list"}, data=_array(MODEL)),
    "Health": _object(
        status={"enum": ["ready", "loading", "draining", "failed"]},
        ready=BOOLEAN,
        draining=BOOLEAN,
        outstanding=INTEGER,
        capacity=INTEGER,
        replicas=_array({"type": "object"}),
    ),
}

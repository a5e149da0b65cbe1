"""What clients may send: OpenAI's shapes, validated. Pure: no Flask, no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from ..settings import Settings
from ..stream_model import Prompt

DEFAULT_MAX_TOKENS = 16

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
        {"type": "null"},
    ]
}

STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}},
        {"type": "null"},
    ]
}


def _prompts(value: object) -> list[Prompt]:
    """A string, token ids, or a list of either, as a list of prompts."""
    if isinstance(value, str):
        return [_text(value)]
    if not isinstance(value, list):
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, token ids or a list of those"
        )
    if not value:
        raise PydanticCustomError("prompt", "must not be an empty list")
    if all(isinstance(item, str) for item in value):
        return [_text(item) for item in value]
    if all(isinstance(item, list) for item in value):
        return [_token_ids(item) for item in value]
    return [_token_ids(value)]


def _token_ids(value: list[object]) -> list[int]:
    if not value:
        raise PydanticCustomError("prompt", "must not hold an empty list of token ids")
    # A bool is an int to Python and not to JSON.
    if not all(type(item) is int for item in value):
        raise PydanticCustomError("prompt", "must hold strings only, or token ids only")
    return value  # type: ignore[return-value]


def _text(value: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PydanticCustomError("prompt", "must not hold unpaired surrogates")
    return value


def _stop(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    return values  # type: ignore[return-value]  # checked above


class _Body(BaseModel):
    """Null means default, unknown fields are let through, and a type is never guessed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


class _Request(_Body):
    """A whole request."""

    @classmethod
    def read(cls, body: bytes, query: Mapping[str, list[str]]) -> Self:
        """Read a request: JSON body, with query parameters before it.

        Raises InvalidRequest naming the first parameter at fault.
        """
        values = _json_object(body)
        values |= {name: _from_query(cls, name, given) for name, given in query.items()}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _invalid(error) from None


class TokenizeRequest(_Request):
    """The body of POST /tokenize."""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(_Request):
    """The body of POST /detokenize."""

    tokens: list[int]


class StreamOptions(_Body):
    """What a stream carries beside its choices."""

    include_usage: bool = False


class _GenerationRequest(_Request):
    """What completions and chat have in common."""

    model: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: Annotated[list[str], PlainValidator(_stop), WithJsonSchema(STOP_SCHEMA)] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check_limits(self, settings: Settings) -> None:
        """Raise InvalidRequest for what this server does not allow."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream", param="stream_options")
        _at_most("n", self.n, settings.completion_max_n)

    def to_params(self, *, max_tokens: int, n: int, logprobs: int | None) -> SamplingParams:
        """Raises InvalidRequest for a value outside its range."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            # -1 is what other servers call 0.
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            n=n,
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_logit_bias(self.logit_bias),
            logprobs=logprobs,
        )


class CompletionRequest(_GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts), WithJsonSchema(PROMPT_SCHEMA)] = [None]
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    @classmethod
    def parse(cls, body: bytes, query: Mapping[str, list[str]], settings: Settings) -> Self:
        """Read and check a request. Raises InvalidRequest naming the parameter at fault."""
        request = cls.read(body, query)
        request.check_limits(settings)
        return request

    def check_limits(self, settings: Settings) -> None:
        super().check_limits(settings)
        if self.suffix:
            raise InvalidRequest(
                "suffix is not supported: the model cannot fill in the middle",
                param="suffix",
                code="unsupported_parameter",
            )
        if self.sequences < self.n:
            raise InvalidRequest("best_of must be at least n", param="best_of")
        if self.stream and self.sequences > self.n:
            raise InvalidRequest("best_of must equal n in a stream", param="best_of")
        _at_most("best_of", self.sequences, settings.completion_max_n)
        _at_most("max_tokens", self.max_tokens or 0, settings.completion_max_tokens)
        _at_most("logprobs", self.logprobs or 0, settings.completion_max_logprobs)
        if len(self.prompt) > settings.completion_max_prompts:
            raise InvalidRequest(
                f"prompt must hold at most {settings.completion_max_prompts} prompts", param="prompt"
            )
        longest = max((len(p) for p in self.prompt if isinstance(p, str)), default=0)
        _at_most("prompt", longest, settings.completion_max_prompt, " characters long")

    @property
    def sequences(self) -> int:
        """Choices generated for each prompt, of which the best n are told."""
        return self.n if self.best_of is None else self.best_of

    def sampling_params(self, settings: Settings) -> SamplingParams:
        """Raises InvalidRequest for a value outside its range."""
        limit = settings.completion_max_tokens or DEFAULT_MAX_TOKENS
        max_tokens = min(DEFAULT_MAX_TOKENS, limit) if self.max_tokens is None else self.max_tokens
        # To rank by log-probability they must be known.
        logprobs = 0 if self.logprobs is None and self.sequences > self.n else self.logprobs
        if logprobs is not None and logprobs < 0:
            raise InvalidRequest("logprobs must be at least 0", param="logprobs")
        return self.to_params(max_tokens=max_tokens, n=self.sequences, logprobs=logprobs)


class TextPart(_Body):
    """A part of a message's content; other kinds than text are refused."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """One message of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as templates know it: parts joined, arguments of tool calls as objects."""
        message = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        for call in message.get("tool_calls", []):
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = _arguments(function["arguments"])
        return message


class ChatRequest(_GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    chat_template: None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @classmethod
    def parse(cls, body: bytes, settings: Settings) -> Self:
        """Read and check a request. Raises InvalidRequest naming the parameter at fault."""
        request = cls.read(body, {})
        request.check_limits(settings)
        return request

    def check_limits(self, settings: Settings) -> None:
        super().check_limits(settings)
        if not self.messages:
            raise InvalidRequest("messages must not be empty", param="messages")
        for position, message in enumerate(self.messages):
            if message.content is None and not message.tool_calls:
                raise InvalidRequest("content is missing", param=f"messages[{position}].content")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise _unsupported("response_format")
        if self.tools:
            raise _unsupported("tools")
        if self.tool_choice not in (None, "none", "auto"):
            raise _unsupported("tool_choice")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed with logprobs", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "add_generation_prompt is not allowed with continue_final_message",
                param="add_generation_prompt",
            )
        _at_most("top_logprobs", self.top_logprobs or 0, settings.completion_max_logprobs)
        _at_most(self.limit_param, self.limit or 0, settings.completion_max_tokens)

    @property
    def limit(self) -> int | None:
        """The most tokens wanted; None for as many as fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def limit_param(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """Raises InvalidRequest for a value outside its range."""
        if self.top_logprobs is not None and self.top_logprobs < 0:
            raise InvalidRequest("top_logprobs must be at least 0", param="top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.to_params(max_tokens=max_tokens, n=self.n, logprobs=logprobs)


def _unsupported(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not supported", param=name, code="unsupported_parameter")


def _arguments(text: str) -> object:
    """A tool call's arguments, which clients send as JSON text and templates want as an object."""
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        return text


def _logit_bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(token), bias) for token, bias in given.items())
    except ValueError:
        raise InvalidRequest("logit_bias must map token ids to numbers", param="logit_bias") from None


def _at_most(name: str, value: int, limit: int | None, unit: str = "") -> None:
    if limit is not None and value > limit:
        raise InvalidRequest(f"{name} must be at most {limit}{unit}", param=name)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return value


def _from_query(model: type[BaseModel], name: str, given: list[str]) -> object:
    """A query parameter as the JSON value it stands for. Text stays text."""
    field = model.model_fields.get(name)
    if field is None or name in ("prompt", "stop") or field.annotation in (str, str | None):
        return given if len(given) > 1 else given[0]
    value = given[-1]
    if field.annotation is bool and value.lower() in TRUE + FALSE:
        return value.lower() in TRUE
    try:
        return pydantic_core.from_json(value, allow_inf_nan=False)
    except ValueError:
        return value


def _invalid(error: ValidationError) -> InvalidRequest:
    first, *rest = error.errors(include_url=False)
    # Of a union's branches, the one that got furthest is the one that was meant.
    detail = max([first, *(e for e in rest if e["loc"][:1] == first["loc"][:1])], key=lambda e: len(e["loc"]))
    # A union's branches are named in the location too; clients know fields only.
    known = {name for model in (Message, TextPart, StreamOptions) for name in model.model_fields}
    param = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in known or not param:
            param += f".{part}" if param else part
    return InvalidRequest(f"{param}: {detail['msg']}", param=param or None)

"""What clients may send: OpenAI's shapes, validated. Pure: no Flask, no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from ..settings import Settings
from ..stream_model import Prompt

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


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
    """null means default, unknown fields are let through, and a type is never guessed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


class StreamOptions(_Body):
    """What a stream carries beside its choices."""

    include_usage: bool = False


class CompletionRequest(_Body):
    """The body of POST /v1/completions."""

    model: str | None = None
    prompt: Annotated[list[Prompt], PlainValidator(_prompts)] = [None]
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: Annotated[list[str], PlainValidator(_stop)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    # Accepted only with the value that changes nothing.
    logprobs: None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = Field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = Field(default_factory=list)

    @classmethod
    def parse(cls, body: bytes, query: Mapping[str, list[str]], settings: Settings) -> Self:
        """Read a request: JSON body, with query parameters before it. A GET has the query alone.

        Raises InvalidRequest naming the first parameter at fault.
        """
        values = _json_object(body) if body or not query else {}
        values |= {name: _from_query(cls, name, given) for name, given in query.items()}
        limit = settings.completion_max_tokens
        if limit is not None and values.get("max_tokens") is None:
            # The default must not be refused.
            values["max_tokens"] = min(limit, cls.model_fields["max_tokens"].default)
        try:
            request = cls.model_validate(values)
        except ValidationError as error:
            raise _invalid(error) from None
        request.check(settings)
        return request

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequest for a value outside its range."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            n=self.n,
            seed=self.seed,
            stop=tuple(self.stop),
        )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self, settings: Settings) -> None:
        """Raise InvalidRequest for what the types cannot say."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream", param="stream_options")
        self._check_unavailable()
        _at_most("n", self.n, settings.completion_max_n)
        _at_most("max_tokens", self.max_tokens, settings.completion_max_tokens)
        if len(self.prompt) > settings.completion_max_prompts:
            raise InvalidRequest(
                f"prompt must hold at most {settings.completion_max_prompts} prompts", param="prompt"
            )
        longest = max((len(p) for p in self.prompt if isinstance(p, str)), default=0)
        if settings.completion_max_prompt is not None and longest > settings.completion_max_prompt:
            raise InvalidRequest(
                f"prompt must be at most {settings.completion_max_prompt} characters long", param="prompt"
            )

    def _check_unavailable(self) -> None:
        asked = {
            "echo": self.echo,
            "best_of": self.best_of not in (None, self.n),
            "suffix": bool(self.suffix),
            "presence_penalty": self.presence_penalty != 0,
            "frequency_penalty": self.frequency_penalty != 0,
            "repetition_penalty": self.repetition_penalty != 1,
            "logit_bias": bool(self.logit_bias),
            "min_tokens": self.min_tokens != 0,
            "ignore_eos": self.ignore_eos,
            "stop_token_ids": bool(self.stop_token_ids),
        }
        for name, wanted in asked.items():
            if wanted:
                raise InvalidRequest(f"{name} is not supported", param=name, code="unsupported_parameter")


def _at_most(name: str, value: int, limit: int | None) -> None:
    if limit is not None and value > limit:
        raise InvalidRequest(f"{name} must be at most {limit}", param=name)


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
    detail = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in detail["loc"] if isinstance(part, str)) or None
    if param == "logprobs":
        return InvalidRequest("logprobs is not supported", param=param, code="unsupported_parameter")
    return InvalidRequest(f"{param}: {detail['msg']}", param=param)

"""The body of POST /v1/completions, and the query of GET."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ...errors import InvalidRequest
from ...sampling_params import SamplingParams
from ...settings import Settings
from ...stream_model import Prompt
from .generation_request import GenerationRequest, within
from .request import at_most

DEFAULT_MAX_TOKENS = 16

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


def _prompts(value: object) -> list[Prompt]:
    """A string, token ids, or a list of either, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, token ids or a list of those"
        )
    if not value:
        raise PydanticCustomError("prompt", "must not be an empty list")
    if all(isinstance(item, str) for item in value):
        return list(value)
    if all(isinstance(item, list) for item in value):
        return [_token_ids(item) for item in value]
    return [_token_ids(value)]


def _absent() -> list[Prompt]:
    return [None]


def _token_ids(value: list[object]) -> list[int]:
    if not value:
        raise PydanticCustomError("prompt", "must not hold an empty list of token ids")
    # A bool is an int to Python and not to JSON.
    if not all(type(item) is int for item in value):
        raise PydanticCustomError("prompt", "must hold strings only, or token ids only")
    return value  # type: ignore[return-value]


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts), WithJsonSchema(PROMPT_SCHEMA)] = Field(
        default_factory=_absent
    )
    suffix: str | None = None
    max_tokens: Annotated[int | None, within(0)] = None
    logprobs: Annotated[int | None, within(0)] = None
    echo: bool = False
    best_of: Annotated[int | None, within(1)] = None

    def check_limits(self, settings: Settings) -> None:
        super().check_limits(settings)
        if self.sequences < self.n:
            raise InvalidRequest("best_of must be at least n", param="best_of")
        if self.stream and self.sequences > self.n:
            raise InvalidRequest("best_of must equal n in a stream", param="best_of")
        if self.suffix and self.echo and self.logprobs is not None:
            raise InvalidRequest("echo with logprobs is not allowed with suffix", param="suffix")
        at_most("best_of", self.sequences, settings.completion_max_n)
        at_most("max_tokens", self.max_tokens or 0, settings.completion_max_tokens)
        at_most("logprobs", self.logprobs or 0, settings.completion_max_logprobs)
        if len(self.prompt) > settings.completion_max_prompts:
            raise InvalidRequest(
                f"prompt must hold at most {settings.completion_max_prompts} prompts", param="prompt"
            )
        longest = max((len(p) for p in self.prompt if isinstance(p, str)), default=0)
        at_most("prompt", longest, settings.completion_max_prompt, " characters long")

    @property
    def sequences(self) -> int:
        """Choices generated for each prompt, of which the best n are told."""
        return self.n if self.best_of is None else self.best_of

    def sampling_params(self, settings: Settings) -> SamplingParams:
        """Raises InvalidRequest for a value outside its range."""
        limit = settings.completion_max_tokens or DEFAULT_MAX_TOKENS
        max_tokens = min(DEFAULT_MAX_TOKENS, limit) if self.max_tokens is None else self.max_tokens
        return self.to_params(
            max_tokens=max_tokens, n=self.sequences, logprobs=self.logprobs, ranked=self.sequences > self.n
        )

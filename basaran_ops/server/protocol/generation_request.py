"""What completions and chat have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ...errors import InvalidRequest
from ...sampling_params import MAX_BIAS, MAX_SEED, RANGES, SamplingParams
from ...settings import Settings
from .request import Body, Request, at_most, unsupported

STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}},
        {"type": "null"},
    ]
}

BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]+$"},
    "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
}

RESPONSE_FORMAT_SCHEMA = {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]}


def within(least: float | None = None, most: float | None = None) -> WithJsonSchema:
    """A number's bounds in the API's description. SamplingParams enforces them, for every caller."""
    kind = "number" if isinstance(least, float) else "integer"
    bounds = {"minimum": least, "maximum": most}
    return WithJsonSchema(
        {"type": kind} | {name: value for name, value in bounds.items() if value is not None}
    )


def real(name: str) -> WithJsonSchema:
    """The same for a real number, whose range has one home."""
    low, high = RANGES[name]
    return within(float(low), float(high))


def _stop(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    return values  # type: ignore[return-value]  # checked above


class StreamOptions(Body):
    """What a stream carries beside its choices."""

    include_usage: bool = False


class GenerationRequest(Request):
    """A request that generates text."""

    textual: ClassVar[frozenset[str]] = frozenset({"prompt", "stop"})

    model: str | None = None
    temperature: Annotated[float, real("temperature")] = 1.0
    top_p: Annotated[float, real("top_p")] = 1.0
    top_k: Annotated[int, within(-1)] = 0
    min_p: Annotated[float, real("min_p")] = 0.0
    n: Annotated[int, within(1)] = 1
    seed: Annotated[int | None, within(-MAX_SEED - 1, MAX_SEED)] = None
    stop: Annotated[list[str], PlainValidator(_stop), WithJsonSchema(STOP_SCHEMA)] = Field(
        default_factory=list
    )
    stop_token_ids: list[Annotated[int, within(0)]] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: Annotated[int, within(0)] = 0
    presence_penalty: Annotated[float, real("presence_penalty")] = 0.0
    frequency_penalty: Annotated[float, real("frequency_penalty")] = 0.0
    repetition_penalty: Annotated[float, real("repetition_penalty")] = 1.0
    logit_bias: Annotated[dict[str, float], WithJsonSchema(BIAS_SCHEMA)] = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    response_format: Annotated[dict[str, Any] | None, WithJsonSchema(RESPONSE_FORMAT_SCHEMA)] = Field(
        None, description="Text only."
    )
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check_limits(self, settings: Settings) -> None:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream", param="stream_options")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise unsupported("response_format")
        at_most("n", self.n, settings.completion_max_n)

    def to_params(
        self, *, max_tokens: int, n: int, logprobs: int | None, ranked: bool = False
    ) -> SamplingParams:
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
            # Each once: a list of a million is looked through at every token.
            stop=tuple(dict.fromkeys(self.stop)),
            stop_token_ids=tuple(dict.fromkeys(self.stop_token_ids)),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_logit_bias(self.logit_bias),
            logprobs=logprobs,
            ranked=ranked,
        )


def _logit_bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    # Not int() alone, which takes spaces, underscores, signs and the digits of all scripts.
    if not all(token.isascii() and token.isdigit() and str(int(token[:20])) == token for token in given):
        raise InvalidRequest("logit_bias must map token ids to numbers", param="logit_bias")
    return tuple((int(token), bias) for token, bias in given.items())

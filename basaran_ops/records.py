"""What the core tells of requests to whoever listens: metrics, logs, traces. The core knows none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .outputs import FinishReason

Outcome = Literal["stop", "length", "abort", "error", "timeout"]
"""How a request ended. Of its choices' reasons "length" is told before "stop"."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Where a request came from, as far as its listeners care."""

    request_id: str = ""
    endpoint: Literal["completions", "chat", "library"] = "library"
    model: str = ""
    """The name it was served under."""
    streamed: bool = True
    traceparent: str | None = None
    """W3C trace context of the caller."""


@dataclass(frozen=True, slots=True)
class ChoiceRecord:
    """One choice. Times are seconds of time.monotonic()."""

    tokens: int
    finish_reason: FinishReason | None
    admitted_at: float | None
    """When it got a slot; None if it never did."""
    first_token_at: float | None
    last_token_at: float | None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that has ended. Times are seconds of time.monotonic()."""

    context: RequestContext
    outcome: Outcome
    arrived_at: float
    ended_at: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    max_tokens: int
    choices: tuple[ChoiceRecord, ...]
    status: int = 200
    """Of the HTTP answer, as far as it is known; a stream's is sent before it can fail."""
    error: str | None = None
    client_gone: bool = False
    """Whether it ended because its client left."""
    prompts: tuple[str, ...] = field(default=(), repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)
    """Text of prompts and choices, where the operator wants them logged."""

    @property
    def admitted_at(self) -> float | None:
        """When its first choice got a slot."""
        return _first([choice.admitted_at for choice in self.choices])

    @property
    def first_token_at(self) -> float | None:
        return _first([choice.first_token_at for choice in self.choices])


class RequestListener(Protocol):
    """Told of each admitted request: on its own thread, but for an end that another thread brings about. Must
    not block or raise.
    """

    def prompt_read(self, context: RequestContext, prompt_tokens: int, cached_tokens: int) -> None:
        """The request's first token is there."""
        ...

    def tokens_generated(self, context: RequestContext, count: int, gap: float | None) -> None:
        """A choice has grown by `count` tokens, `gap` seconds after it last did; None for its first."""
        ...

    def request_ended(self, record: RequestRecord) -> None:
        """Exactly once for each admitted request."""
        ...


class Listeners:
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[RequestListener] = ()) -> None:
        self._listeners = tuple(listeners)

    def prompt_read(self, context: RequestContext, prompt_tokens: int, cached_tokens: int) -> None:
        for listener in self._listeners:
            listener.prompt_read(context, prompt_tokens, cached_tokens)

    def tokens_generated(self, context: RequestContext, count: int, gap: float | None) -> None:
        for listener in self._listeners:
            listener.tokens_generated(context, count, gap)

    def request_ended(self, record: RequestRecord) -> None:
        for listener in self._listeners:
            listener.request_ended(record)


def _first(times: Sequence[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)

"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import Field, WithJsonSchema

from ...errors import InvalidRequest
from ...sampling_params import SamplingParams
from ...settings import Settings
from .generation_request import GenerationRequest, within
from .request import Body, at_most, unsupported


class TextPart(Body):
    """A part of a message's content; other kinds than text are refused."""

    type: Literal["text"]
    text: str


class Message(Body):
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

    @property
    def characters(self) -> int:
        """Length of its text."""
        content = self.content or ""
        return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)


class Rendering(Body):
    """How a template is to render messages."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    # A template is a program: it comes from the operator or the model, never from a request.
    chat_template: Annotated[None, WithJsonSchema({"type": "null"})] = None

    @property
    def opens_answer(self) -> bool:
        """Whether the rendered text ends with the beginning of the assistant's message."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    def check_rendering(self, messages: Sequence[Message], settings: Settings) -> None:
        """Raise InvalidRequest for messages that no template can render in this way."""
        for position, message in enumerate(messages):
            if message.content is None and not message.tool_calls:
                raise InvalidRequest("content is missing", param=f"messages[{position}].content")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "add_generation_prompt is not allowed with continue_final_message",
                param="add_generation_prompt",
            )
        length = sum(message.characters for message in messages)
        at_most("messages", length, settings.completion_max_prompt, " characters long")


class ChatRequest(GenerationRequest, Rendering):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, within(0)] = None
    max_tokens: Annotated[int | None, within(0)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int | None, within(0)] = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None

    def check_limits(self, settings: Settings) -> None:
        super().check_limits(settings)
        self.check_rendering(self.messages, settings)
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise unsupported(name)
        for name in ("tool_choice", "function_call"):
            if getattr(self, name) not in (None, "none", "auto"):
                raise unsupported(name)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed with logprobs", param="top_logprobs")
        if self.top_logprobs is not None and self.top_logprobs < 0:
            raise InvalidRequest("top_logprobs must be at least 0", param="top_logprobs")
        at_most("top_logprobs", self.top_logprobs or 0, settings.completion_max_logprobs)
        at_most(self.limit_param, self.limit or 0, settings.completion_max_tokens)

    @property
    def limit(self) -> int | None:
        """The most tokens wanted; None for as many as fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def limit_param(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """Raises InvalidRequest for a value outside its range."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.to_params(max_tokens=max_tokens, n=self.n, logprobs=logprobs)


def _arguments(text: str) -> object:
    """A tool call's arguments, which clients send as JSON text and templates want as an object."""
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        return text

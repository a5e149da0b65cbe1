"""The bodies of POST /tokenize and POST /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...errors import InvalidRequest
from ...settings import Settings
from .chat_request import Message, Rendering
from .request import Request, at_most


class TokenizeRequest(Request, Rendering):
    """The body of POST /tokenize: a prompt, or messages as chat takes them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message] | None, Field(min_length=1)] = None
    add_special_tokens: bool | None = None
    """None is true for a prompt."""
    return_token_strs: bool = False

    def check_limits(self, settings: Settings) -> None:
        if self.messages is not None and self.prompt is not None:
            raise InvalidRequest("prompt is not allowed with messages", param="prompt")
        if self.messages is not None:
            self.check_rendering(self.messages, settings)
            if self.add_special_tokens:
                raise InvalidRequest(
                    "add_special_tokens is not allowed with messages: the template writes them",
                    param="add_special_tokens",
                )
        elif self.prompt is None:
            raise InvalidRequest("prompt or messages must be given", param="prompt")
        else:
            at_most("prompt", len(self.prompt), settings.completion_max_prompt, " characters long")


class DetokenizeRequest(Request):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]

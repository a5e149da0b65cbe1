"""Conversations as the text their model was trained on."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from .tokenizer import Tokenizer

RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template's own expressions raise, given messages that they do not expect."""


class ChatTemplateMissing(ValueError):
    """Neither the operator nor the tokenizer has a template."""


class ChatTemplate:
    """Renders messages and encodes them. The operator's template goes before the tokenizer's own."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        # A copy of its own, and one thread at a time: transformers changes the tokenizer's state to render.
        self._tokenizer = copy.deepcopy(tokenizer.hf)
        self._lock = threading.Lock()
        # Names that mean something to transformers: a request must not reach them as variables.
        self._reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys()
        self._template = template or self._tokenizer.chat_template

    @property
    def missing(self) -> bool:
        """Whether there is none, neither the operator's nor the tokenizer's."""
        return self._template is None

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> list[int]:
        """Token ids of a conversation. Control tokens in the messages are ordinary text.

        Raises ChatTemplateMissing, or ValueError saying why these messages cannot be rendered.
        """
        if self.missing:
            raise ChatTemplateMissing(
                "the model has no chat template; set MODEL_CHAT_TEMPLATE to a file with one"
            )
        if taken := sorted(self._reserved & variables.keys()):
            raise ValueError(f"{taken[0]} is not a variable of a chat template")
        conversation = [self._adapted(message) for message in messages]
        try:
            with self._lock:
                ids = self._tokenizer.apply_chat_template(
                    conversation,
                    chat_template=self._template,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    sanitize_control_tokens=True,
                    return_dict=False,
                    **variables,
                )
        except RENDERING_ERRORS as error:
            raise ValueError(f"the chat template cannot render these messages: {error}") from error
        return list(ids)

    def _adapted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        adapted = dict(message)
        if adapted["role"] == "developer" and "developer" not in str(self._template):
            adapted["role"] = "system"
        return adapted

"""Conversations as the text their model was trained on."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

from jinja2 import TemplateError

from .template_limits import RenderLimits
from .template_sandbox import Program
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What transformers raises, given messages that the template does not expect."""

LONGEST_MESSAGE = 1000
"""Characters of an error that are told: a template chooses its own."""


class ChatTemplateMissing(ValueError):
    """Neither the operator nor the tokenizer has a template."""


class ChatTemplate:
    """Renders messages and encodes them. The operator's template goes before the tokenizer's own."""

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, limits: RenderLimits | None = None
    ) -> None:
        # A copy of its own, and one thread at a time: transformers changes the tokenizer's state to render.
        self._tokenizer = copy.deepcopy(tokenizer.hf)
        self._lock = threading.Lock()
        # Names that mean something to transformers: a request must not reach them as variables.
        self._reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys()
        self._template = template or self._tokenizer.chat_template
        self._limits = limits or RenderLimits()
        self._programs: dict[str, Program] = {}

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
            with self._lock, _compiled_by(self._compiled):
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
            told = str(error)[:LONGEST_MESSAGE]
            raise ValueError(f"the chat template cannot render these messages: {told}") from error
        return list(ids)

    def _compiled(self, template: str) -> Program:
        if template not in self._programs:
            self._programs[template] = Program(template, self._limits)
        return self._programs[template]

    def _adapted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        adapted = dict(message)
        if adapted["role"] == "developer" and "developer" not in str(self._template):
            adapted["role"] = "system"
        return adapted


# -- transformers compiles templates by a function of its own, which is led here while a ChatTemplate encodes

_compile: ContextVar[Callable[[str], Program] | None] = ContextVar("compile", default=None)


@contextmanager
def _compiled_by(function: Callable[[str], Program]) -> Iterator[None]:
    """Let transformers compile templates by this, in this thread."""
    _lead_transformers_here()
    token = _compile.set(function)
    try:
        yield
    finally:
        _compile.reset(token)


@cache
def _lead_transformers_here() -> None:
    from transformers.utils import chat_template_utils  # two seconds: see import_library

    theirs = getattr(chat_template_utils, "_compile_jinja_template", None)
    if theirs is None:
        log.warning("this release of transformers renders chat templates without any limit")
        return

    @wraps(theirs)
    def compile_template(template: str) -> Any:
        ours = _compile.get()
        return theirs(template) if ours is None else ours(template)

    chat_template_utils._compile_jinja_template = compile_template  # noqa: SLF001 - it has no public name

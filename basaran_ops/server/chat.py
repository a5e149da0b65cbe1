"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response

from ..errors import ContextLengthExceeded, InvalidRequest
from ..text_stream import TextOutput, TextStream, TextToken, collect
from .body import read_body
from .conversation import encode
from .generation import respond, usage
from .logprobs import chat_logprobs, token_ids
from .protocol import ChatRequest
from .service import service

blueprint = Blueprint("chat", __name__)


@blueprint.post("/v1/chat/completions")
def create_chat_completion() -> Response:
    """Answer a conversation, streamed or whole."""
    settings = service().settings
    asked = ChatRequest.parse(read_body(), settings)
    adapter = service().adapter_for(asked.model)
    try:
        prompt = encode(service().model, asked.messages, asked)
        params = asked.sampling_params(_max_tokens(asked, prompt))
        watch = service().watch("chat", adapter or service().model_name, streamed=asked.stream)
        stream = service().model.generate(
            [prompt], params, token_ids=asked.return_token_ids, adapter=adapter, watch=watch
        )
    except InvalidRequest as error:
        error.rename({"prompt": "messages", "max_tokens": asked.limit_param})
        raise
    template: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": adapter or service().model_name,
    }
    # Events are made after the view has returned, when there is no service() any more.
    tokenizer = service().model.tokenizer
    begun: set[int] = set()

    def make_choice(index: int, tokens: Sequence[TextToken], reason: str | None) -> dict[str, Any]:
        ids = asked.return_token_ids
        logprobs = chat_logprobs(tokens, tokenizer, token_ids=ids) if asked.logprobs else None
        choice = {"index": index, "logprobs": logprobs, "finish_reason": reason}
        return choice | token_ids(tokens, told=ids)

    def whole() -> dict[str, Any]:
        choices = [
            make_choice(choice.index, choice.tokens, choice.finish_reason)
            | {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            for choice in collect(stream)
        ]
        answer = {"object": "chat.completion", "choices": choices, "usage": usage(stream)}
        return template | answer | _prompt_ids(asked, stream, first=True)

    def chunk(output: TextOutput) -> dict[str, Any]:
        first = not begun
        delta: dict[str, Any] = {} if output.index in begun else {"role": "assistant"}
        begun.add(output.index)
        if output.text or "role" in delta:
            delta["content"] = output.text
        choice = make_choice(output.index, output.tokens, output.finish_reason)
        return _chunk([choice | {"delta": delta}], None) | _prompt_ids(asked, stream, first=first)

    def last() -> dict[str, Any]:
        return _chunk([], usage(stream))

    def _chunk(choices: list[dict[str, Any]], used: dict[str, Any] | None) -> dict[str, Any]:
        chunk = template | {"object": "chat.completion.chunk", "choices": choices}
        return chunk | {"usage": used} if asked.include_usage else chunk

    if asked.stream:
        return respond(stream, chunk=chunk, last=last if asked.include_usage else None)
    return respond(stream, whole=whole)


def _prompt_ids(asked: ChatRequest, stream: TextStream, *, first: bool) -> dict[str, Any]:
    """The prompt's token ids, where they are wanted; of a stream's chunks the first has them."""
    if not asked.return_token_ids:
        return {}
    return {"prompt_token_ids": list(stream.prompt_ids[0]) if first else None}


def _max_tokens(asked: ChatRequest, prompt: list[int]) -> int:
    """As asked; else all that is left of the context."""
    if asked.limit is not None:
        return asked.limit
    info = service().model.info
    assert info is not None, "encoding needs a loaded model"
    left = info.room_after(len(prompt))
    if left < 1:
        raise ContextLengthExceeded(
            info.context_length, f"your messages have {len(prompt)} tokens.", param="messages"
        )
    return min(left, service().settings.completion_max_tokens or left)

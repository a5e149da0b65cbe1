"""From a request's messages to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidRequest
from ..stream_model import StreamModel
from ..text.chat_template import ChatTemplateMissing
from .protocol import Message, Rendering


def encode(model: StreamModel, messages: Sequence[Message], rendering: Rendering) -> list[int]:
    """The conversation's token ids. Raises InvalidRequest if the template cannot render it."""
    model.check_length("messages", sum(message.characters for message in messages))
    try:
        return model.chat_template.encode(
            [message.for_template() for message in messages],
            add_generation_prompt=rendering.opens_answer,
            continue_final_message=rendering.continue_final_message,
            variables=rendering.chat_template_kwargs,
        )
    except ChatTemplateMissing as error:
        raise InvalidRequest(str(error), param="messages", code="chat_template_missing") from None
    except ValueError as error:
        raise InvalidRequest(str(error), param="messages") from None

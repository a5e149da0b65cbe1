"""What clients may send: OpenAI's shapes, validated. Pure: no Flask, no model."""

from .chat_request import ChatRequest, Message, Rendering
from .completion_request import CompletionRequest
from .tokenize_request import DetokenizeRequest, TokenizeRequest

__all__ = ["ChatRequest", "CompletionRequest", "DetokenizeRequest", "Message", "Rendering", "TokenizeRequest"]

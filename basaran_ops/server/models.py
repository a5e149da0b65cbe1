"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify
from werkzeug.routing import BaseConverter

from ..errors import ModelNotFound
from ..outputs import ModelInfo
from .service import service


class NameConverter(BaseConverter):
    """Whatever is left of the path."""

    regex = ".+?"
    part_isolating = False


blueprint = Blueprint("models", __name__)


@blueprint.get("/v1/models")
def list_models() -> Response:
    """All models served: the model itself, then its adapters."""
    return jsonify(object="list", data=[_describe(name) for name in _names()])


@blueprint.get("/v1/models/<name:name>")
def retrieve_model(name: str) -> Response:
    """One model; its id may hold slashes, percent-encoded or not."""
    if name not in _names():
        raise ModelNotFound(name)
    return jsonify(_describe(name))


def _names() -> list[str]:
    return [service().model_name, *service().settings.adapters]


def _describe(name: str) -> dict[str, Any]:
    info = service().model.info
    capabilities = None if info is None else _capabilities(info)
    own = service().model_name
    return {
        "id": name,
        "object": "model",
        "created": service().created,
        "owned_by": "basaran_ops",
        "max_model_len": None if info is None else info.context_length,
        "parent": None if name == own else own,
        "capabilities": capabilities,
    }


def _capabilities(info: ModelInfo) -> dict[str, bool]:
    """What not every model can do."""
    model = service().model
    return {
        "chat": not model.chat_template.missing,
        "infilling": model.tokenizer.infilling is not None,
        # Otherwise the completion is a text of its own: an encoder-decoder model's.
        "continuation": info.completion_length is None,
    }

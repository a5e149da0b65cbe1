"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from ..errors import ModelNotFound
from .service import service

blueprint = Blueprint("models", __name__)


@blueprint.get("/v1/models")
def list_models() -> Response:
    """All models served: one."""
    return jsonify(object="list", data=[_model()])


@blueprint.get("/v1/models/<path:name>")
def retrieve_model(name: str) -> Response:
    """One model; its id may hold slashes, percent-encoded or not."""
    if name != service().model_name:
        raise ModelNotFound(name)
    return jsonify(_model())


def _model() -> dict[str, Any]:
    info = service().model.info
    return {
        "id": service().model_name,
        "object": "model",
        "created": service().created,
        "owned_by": "basaran_ops",
        "max_model_len": None if info is None else info.context_length,
    }

"""GET /health: whether a request would be taken, and what the engines are doing."""

from __future__ import annotations

from dataclasses import asdict

from flask import Blueprint, Response, jsonify

from .service import service

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def health() -> tuple[Response, int]:
    """200 when ready; 503 while loading, draining or without a healthy engine. A full queue is healthy."""
    status = service().model.pool.status()
    return jsonify(status=status.word, **asdict(status)), 200 if status.ready else 503

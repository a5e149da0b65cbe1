"""What the metrics are told of HTTP: every answer, and requests for text that were refused."""

from __future__ import annotations

import logging

from flask import Flask, Response, g, request

from ..telemetry.metrics import Metrics

log = logging.getLogger(__name__)

GENERATING = ("/v1/completions", "/v1/chat/completions")

METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")

REASONS = {
    "queue_full": "queue_full",
    "shutting_down": "draining",
    "model_loading": "not_ready",
    "engine_failed": "not_ready",
    "context_length_exceeded": "too_long",
    "request_too_large": "too_long",
    "invalid_api_key": "unauthorized",
    "model_not_found": "unknown_model",
}
"""Why a request was refused, by its error's code. Other refusals are of invalid requests."""


def install(app: Flask, metrics: Metrics) -> None:
    """Count the app's answers."""

    def count(response: Response) -> Response:
        route = "other" if request.url_rule is None else request.url_rule.rule
        # A method is whatever a client writes there.
        method = request.method if request.method in METHODS else "other"
        metrics.http_answered(method, route, response.status_code)
        refused = response.status_code >= 400 and not g.get("admitted", False)
        if refused and route in GENERATING and method in ("GET", "POST"):
            reason = REASONS.get(g.get("error_code"), "invalid")
            metrics.request_rejected(reason)
            log.info(
                "request refused",
                extra={"request_id": g.request_id, "reason": reason, "status": response.status_code},
            )
        return response

    app.after_request(count)

"""Errors as OpenAI's clients expect them: four keys, every status."""

from __future__ import annotations

import logging
from typing import Any

from flask import Flask, Response, g, jsonify
from werkzeug.exceptions import HTTPException

from ..errors import BasaranError

log = logging.getLogger(__name__)


def error_body(error: BasaranError) -> dict[str, Any]:
    """The `error` object of a response or of an event in mid-stream."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def unexpected(error: Exception) -> BasaranError:
    """What a client is told of a defect; the log has the rest."""
    log.error("a request failed unexpectedly", exc_info=error)
    return BasaranError("The server had an error while processing your request", code="internal_error")


def install(app: Flask) -> None:
    """Answer every error of the app in this shape."""
    app.register_error_handler(BasaranError, _expected)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, lambda error: _expected(unexpected(error)))


def _expected(error: BasaranError) -> Response:
    g.error_code = error.code
    response = jsonify(error_body(error))
    response.status_code = error.status
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    if error.status == 401:
        # RFC 9110, section 11.6.1: a 401 says how to authenticate.
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    if status < 400:
        return error.get_response()  # type: ignore[return-value]  # a redirect, not an error
    g.error_code = _code(status)
    kind = "invalid_request_error" if status < 500 else "server_error"
    response = jsonify(
        error={"message": error.description or error.name, "type": kind, "param": None, "code": _code(status)}
    )
    response.status_code = status
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _code(status: int) -> str | None:
    return {
        404: "not_found",
        405: "method_not_allowed",
        408: "request_timeout",
        413: "request_too_large",
    }.get(status)

"""The Flask app, and how the server makes it."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ..errors import BasaranError, ModelLoadError
from ..outputs import ModelInfo
from ..pool import GenerationPool, ProcessTransport
from ..pool.placement import placements
from ..records import Listeners, RequestListener
from ..settings import Settings
from ..stream_model import StreamModel
from ..telemetry.logs import configure_logs
from ..telemetry.metrics import Metrics
from ..telemetry.pool_collector import PoolCollector
from ..telemetry.request_log import RequestLog
from ..telemetry.tracing import start_tracing
from ..text.tokenizer import import_library
from . import (
    access,
    chat,
    completions,
    counting,
    error_responses,
    health,
    models,
    openapi,
    playground,
    tokenize,
)
from .disconnects import DepartureMonitor
from .service import EXTENSION, Service

log = logging.getLogger(__name__)


def create_app(service: Service) -> Flask:
    """The WSGI app over a model that may still be loading."""
    app = Flask(__name__, static_folder=None)
    app.json.ensure_ascii = False  # type: ignore[attr-defined]  # of the default provider
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.compact = True  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False
    # A model may be named by a path, with a slash in front.
    app.url_map.merge_slashes = False
    app.url_map.converters["name"] = models.NameConverter
    app.extensions[EXTENSION] = service
    for module in (completions, chat, models, tokenize, health, openapi):
        app.register_blueprint(module.blueprint)
    if not service.settings.server_no_playground:
        app.register_blueprint(playground.blueprint)
    error_responses.install(app)
    app.before_request(_identify)
    access.install(app, service.settings)
    app.after_request(_stamp)
    counting.install(app, service.metrics)
    return app


def create_server(on_fatal: Callable[[ModelLoadError], None] | None = None) -> Flask:
    """The app as gunicorn's worker serves it: settings from the environment, engines starting.

    `on_fatal` is called, on another thread, if the model can never be loaded.
    """
    settings = Settings.from_environment(os.environ)
    configure_logs(settings, process="server")
    forbid_torch()
    service = start_service(settings, on_fatal or (lambda error: None))
    import_library()
    return create_app(service)


def start_service(settings: Settings, on_fatal: Callable[[ModelLoadError], None]) -> Service:
    """Start the engines; returns at once, with the model still loading.

    Raises InvalidSettings where they ask for more GPUs than there are.
    """
    model = StreamModel(
        trust_remote_code=settings.model_trust_remote_code, chat_template=_chat_template(settings)
    )
    metrics = Metrics(
        [settings.served_name, *settings.adapters],
        replicas=settings.engine_replicas,
        aliases=settings.management_vllm_aliases,
    )

    def on_ready(info: ModelInfo) -> None:
        model.on_ready(info)
        metrics.model_loaded(info)

    pool = GenerationPool(
        [partial(ProcessTransport, settings, placement) for placement in placements(settings, os.environ)],
        capacity=settings.capacity,
        on_ready=on_ready,
        on_failure=on_fatal,
        on_step=metrics.step_done,
    )
    model.attach(pool)
    metrics.registry.register(
        PoolCollector(
            model,
            settings.served_name,
            slots=settings.slots,
            queue_limit=settings.server_queue_limit,
            revision=settings.model_revision,
        )
    )
    pool.start()
    traces = start_tracing(os.environ)
    listeners: list[RequestListener] = [metrics, RequestLog()]
    if traces is not None:
        listeners.append(traces)
    return Service(
        settings,
        model,
        settings.served_name,
        DepartureMonitor(),
        metrics,
        Listeners(listeners),
        on_close=(lambda: None) if traces is None else traces.close,
    )


def _chat_template(settings: Settings) -> str | None:
    return Path(settings.model_chat_template).read_text() if settings.model_chat_template else None


def refuses(app: Flask, environ: dict[str, Any]) -> bool:
    """Whether the app refuses a request whatever its body is: for want of a route, a method or a key."""
    with app.request_context(environ):
        try:
            if request.routing_exception is not None:
                return True
            return app.preprocess_request() is not None
        except (BasaranError, HTTPException):
            return True


def forbid_torch() -> None:
    """Make `import torch` fail in this process: it would take seconds, memory, and a GPU context."""
    if sys.modules.get("torch") is not None:
        raise RuntimeError("torch was imported before the server's process could forbid it")
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to forbid an import
    # transformers would advise to install it.
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"


def _identify() -> None:
    given = request.headers.get("x-request-id", "")
    g.started = time.monotonic()
    g.request_id = given if 0 < len(given) <= 128 and given.isprintable() else uuid.uuid4().hex


def _stamp(response: Response) -> Response:
    response.headers["x-request-id"] = g.request_id
    response.headers["openai-processing-ms"] = str(round((time.monotonic() - g.started) * 1000))
    return response

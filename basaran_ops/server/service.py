"""What the views share: one object, made with the app."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

from flask import current_app, g, request

from ..errors import ModelNotFound
from ..records import Listeners, RequestContext, RequestListener
from ..settings import Settings
from ..stream_model import StreamModel
from ..telemetry.metrics import Metrics
from ..text_stream import TimeLimits, Watch
from .disconnects import DepartureMonitor

EXTENSION = "basaran_ops"


@dataclass(frozen=True, slots=True)
class Service:
    """The settings, the model and the monitor of one app."""

    settings: Settings
    model: StreamModel
    model_name: str
    departures: DepartureMonitor
    metrics: Metrics
    listener: RequestListener = field(default_factory=Listeners)
    on_close: Callable[[], None] = lambda: None
    created: int = field(default_factory=lambda: int(time.time()))

    def adapter_for(self, name: str | None) -> str | None:
        """The adapter that a request's `model` names; None for the model itself.

        Raises ModelNotFound for another model's name, where that is wanted.
        """
        if name in self.settings.adapters:
            return name
        if self.settings.server_strict_model and name is not None and name != self.model_name:
            raise ModelNotFound(name)
        return None

    def watch(self, endpoint: Literal["completions", "chat"], model: str, *, streamed: bool) -> Watch:
        """Who is told of the current request, and how long it may take."""
        settings = self.settings
        return Watch(
            context=RequestContext(
                request_id=g.request_id,
                endpoint=endpoint,
                model=model,
                streamed=streamed,
                traceparent=request.headers.get("traceparent"),
            ),
            listener=self.listener,
            limits=TimeLimits(queue=settings.server_queue_timeout, total=settings.server_request_timeout),
            keep_text=settings.log_prompts,
        )

    def close(self) -> None:
        """End all requests, engines and threads. Idempotent."""
        self.model.close()
        self.departures.close()
        self.on_close()


def service() -> Service:
    """The service of the app that handles the current request."""
    return cast("Service", current_app.extensions[EXTENSION])

"""What the views share: one object, made with the app."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

from flask import current_app

from ..errors import ModelNotFound
from ..settings import Settings
from ..stream_model import StreamModel
from .body import BodyReader
from .disconnects import DepartureMonitor

EXTENSION = "basaran_ops"


@dataclass(frozen=True, slots=True)
class Service:
    """The settings, the model and the monitor of one app."""

    settings: Settings
    model: StreamModel
    model_name: str
    departures: DepartureMonitor
    bodies: BodyReader
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFound for another model's name, where that is wanted."""
        if self.settings.server_strict_model and name is not None and name != self.model_name:
            raise ModelNotFound(name)

    def close(self) -> None:
        """End all requests, engines and threads. Idempotent."""
        self.model.close()
        self.departures.close()


def service() -> Service:
    """The service of the app that handles the current request."""
    return cast("Service", current_app.extensions[EXTENSION])

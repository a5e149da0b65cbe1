"""Whether requests are traced. Costs nothing where they are not: OpenTelemetry is not even imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..settings import InvalidSettings

if TYPE_CHECKING:
    from .traces import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables: traces are made where one of them is set, and exported as they say."""


def start_tracing(environ: Mapping[str, str]) -> Traces | None:
    """The listener that makes traces; None where none are wanted."""
    if not check_tracing(environ):
        return None
    from .traces import Traces

    return Traces()


def check_tracing(environ: Mapping[str, str]) -> bool:
    """Whether traces are wanted. Raises InvalidSettings if they are and cannot be made."""
    asked = next((name for name in ENDPOINTS if environ.get(name)), None)
    if asked is not None and not _installed():
        raise InvalidSettings([f"{asked} is set, but OpenTelemetry is not: pip install basaran-ops[otel]"])
    return asked is not None


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False

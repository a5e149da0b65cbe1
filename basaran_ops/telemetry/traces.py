"""OpenTelemetry traces: one span a request. Imported only where an exporter's endpoint is set.

Attributes: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..records import RequestContext, RequestRecord

OPERATIONS = {"completions": "text_completion", "chat": "chat", "library": "text_completion"}


class Traces:
    """A RequestListener that makes a span of each request when it has ended; exported in the background."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "basaran_ops"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("basaran_ops")

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()

    def prompt_read(self, context: RequestContext, prompt_tokens: int, cached_tokens: int) -> None:
        """The span is made at the end."""

    def tokens_generated(self, context: RequestContext, count: int, gap: float | None) -> None:
        """The span is made at the end."""

    def request_ended(self, record: RequestRecord) -> None:
        context = record.context
        operation = OPERATIONS[context.endpoint]
        span = self._tracer.start_span(
            f"{operation} {context.model}",
            context=_parent(context),
            kind=SpanKind.SERVER,
            start_time=_wall_clock(record.arrived_at),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": context.model,
                "gen_ai.request.max_tokens": record.max_tokens,
                "gen_ai.response.finish_reasons": [str(each.finish_reason) for each in record.choices],
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "basaran.request_id": context.request_id,
                "basaran.outcome": record.outcome,
            },
        )
        _add_events(span, record)
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(_wall_clock(record.ended_at))


def _add_events(span: Span, record: RequestRecord) -> None:
    """When it left the queue, when its prompt was read, when its last token came."""
    last = max((c.last_token_at for c in record.choices if c.last_token_at is not None), default=None)
    for name, moment in (
        ("queue ended", record.admitted_at),
        ("prefill ended", record.first_token_at),
        ("decode ended", last),
    ):
        if moment is not None:
            span.add_event(name, timestamp=_wall_clock(moment))


def _parent(context: RequestContext) -> Context | None:
    if context.traceparent is None:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": context.traceparent})


def _wall_clock(moment: float) -> int:
    """A moment of time.monotonic() as nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - moment) * 1e9)

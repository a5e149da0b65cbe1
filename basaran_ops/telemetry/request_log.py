"""One line a request, when it has ended."""

from __future__ import annotations

import logging
from typing import Any

from ..records import RequestContext, RequestRecord

log = logging.getLogger(__name__)


class RequestLog:
    """A RequestListener that logs ends. Text is logged only where the record has any."""

    def prompt_read(self, context: RequestContext, prompt_tokens: int, cached_tokens: int) -> None:
        """Nothing to say yet."""

    def tokens_generated(self, context: RequestContext, count: int, gap: float | None) -> None:
        """Nothing to say yet."""

    def request_ended(self, record: RequestRecord) -> None:
        level = logging.WARNING if record.outcome in ("error", "timeout") else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request ended", extra=_fields(record))


def _fields(record: RequestRecord) -> dict[str, Any]:
    context = record.context
    fields: dict[str, Any] = {
        "request_id": context.request_id,
        "endpoint": context.endpoint,
        "model": context.model,
        "stream": context.streamed,
        "status": record.status,
        "outcome": record.outcome,
        "finish_reasons": [choice.finish_reason for choice in record.choices],
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "queue_ms": _since(record, record.admitted_at),
        "first_token_ms": _since(record, record.first_token_at),
        "duration_ms": _since(record, record.ended_at),
        "client_gone": record.client_gone,
    }
    if record.error is not None:
        fields["error"] = record.error
    if record.prompts:
        fields |= {"prompts": list(record.prompts), "completions": list(record.texts)}
    return fields


def _since(record: RequestRecord, moment: float | None) -> float | None:
    return None if moment is None else round((moment - record.arrived_at) * 1000, 1)

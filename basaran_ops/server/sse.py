"""Server-sent events, as OpenAI frames them: `data: {json}`, a blank line, `data: [DONE]` at the end.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

KEEP_ALIVE_SECONDS = 15.0
"""Proxies cut connections that are silent for 30 to 60 seconds."""


def event(payload: dict[str, Any]) -> bytes:
    """One event. JSON writes line feeds in strings as escapes, so the payload is always one line."""
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

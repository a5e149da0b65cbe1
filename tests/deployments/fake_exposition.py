"""A management port's /metrics of a busy server: every family, every label, counters that grow."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from .metric_families import PROCESS, SERVER, Family, Labels

SOME = {"replica": ("0", "1"), "device": ("cuda:0", "cuda:1")}
"""Values of labels that have no fixed set of them; of those that are not here, one."""

PER_SECOND = 20


def exposition(seconds: float) -> str:
    return "".join(_family(family, 1 + seconds * PER_SECOND) for family in (*SERVER, *PROCESS))


def _family(family: Family, count: float) -> str:
    # In the text format a counter's family has its samples' name.
    lines = [f"# TYPE {family.name} {family.kind}"]
    for labels in _combinations(family.labels):
        if family.kind == "histogram":
            lines += _histogram(family, labels, int(count))
        elif family.kind == "counter":
            lines.append(_sample(family.name, labels, int(count)))
        else:
            lines.append(_sample(family.name, labels, int(labels.get("state", "ready") == "ready")))
    return "\n".join(lines) + "\n"


def _histogram(family: Family, labels: dict[str, str], count: int) -> Iterator[str]:
    """As many observations in each bucket."""
    bounds = [*(str(float(bound)) for bound in family.buckets), "+Inf"]
    for number, bound in enumerate(bounds, start=1):
        yield _sample(f"{family.name}_bucket", {**labels, "le": bound}, count * number)
    yield _sample(f"{family.name}_sum", labels, count * sum(family.buckets))
    yield _sample(f"{family.name}_count", labels, count * len(bounds))


def _combinations(labels: Labels) -> Iterator[dict[str, str]]:
    values = (known or SOME.get(name, (f"some {name}",)) for name, known in labels.items())
    return (dict(zip(labels, each, strict=True)) for each in itertools.product(*values))


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inner = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{inner}}} {value}"


@contextmanager
def management_port() -> Iterator[int]:
    """Serve it on a free port, from a thread that ends with the context."""
    start = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(exposition(time.monotonic() - start).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

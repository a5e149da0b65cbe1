"""Traces: made of records here, and sent by a real server to a collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from basaran_ops.settings import InvalidSettings
from basaran_ops.telemetry import tracing

from ..running_server import running_server

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Takes what is exported over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_a_request_is_a_span_under_its_callers(collector: Collector, tiny_path: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path / "log",
        MODEL=str(tiny_path),
        SERVER_MODEL_NAME="org/tiny",
        ENGINE_SLOTS="2",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    ) as server:
        server.wait_ready()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "abc"}
        body = {"prompt": "the cat", "max_tokens": 7}
        assert server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
        assert server.complete(prompt="the cat", max_tokens=2, n=2, stream=True).status_code == 200
        assert server.complete(prompt=[]).status_code == 400
        # What is left is exported at the end.
        assert server.terminate() == 0
    first, second = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert second.parent_span_id == b""
    assert first.name == "text_completion org/tiny"
    attributes = {each.key: each.value for each in first.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == 7
    assert attributes["basaran.request_id"].string_value == "abc"
    assert [event.name for event in first.events] == ["queue ended", "prefill ended", "decode ended"]
    times = [first.start_time_unix_nano, *(event.time_unix_nano for event in first.events)]
    assert sorted(times) == times
    assert times[-1] <= first.end_time_unix_nano
    assert (
        len(
            {each.key: each.value for each in second.attributes}[
                "gen_ai.response.finish_reasons"
            ].array_value.values
        )
        == 2
    )


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert tracing.start_tracing({}) is None
    assert tracing.start_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None


def test_traces_that_cannot_be_made_are_a_fault_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_installed", lambda: False)
    with pytest.raises(InvalidSettings, match=r"basaran-ops\[otel\]"):
        tracing.check_tracing({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"})
    assert not tracing.check_tracing({})

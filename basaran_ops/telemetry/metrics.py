"""Prometheus metrics. Counters and histograms listen to the core; gauges are pulled when they are scraped.

Where vLLM measures the same, a family has the same suffix, and its own name too if that is asked for.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from ..outputs import EngineStats, ModelInfo
from ..records import RequestContext, RequestRecord

PREFIX = "basaran"

CACHE_SECONDS = 0.1
"""Scrapers that ask more often, as gateways do, are told the same again."""

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
)
TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15),
    *(0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10),
)
REQUEST_BUCKETS = tuple(round(0.01 * 2**power, 2) for power in range(17))
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

OUTCOMES = ("stop", "length", "tool_calls", "abort", "error", "timeout")
REJECTIONS = ("queue_full", "draining", "not_ready", "too_long", "invalid", "unauthorized", "unknown_model")
ENDPOINTS = ("completions", "chat")

ALIASES = (
    *("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"),
    *("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"),
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *("request_time_per_output_token_seconds", "request_queue_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens"),
)
"""Suffixes of families that vLLM has with the same meaning."""

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All that is counted; a RequestListener. Every method may be called from any thread."""

    def __init__(self, model_names: Sequence[str], *, replicas: int = 1, aliases: bool = False) -> None:
        """`model_names` are those served, the model's own first; `aliases` adds vLLM's names."""
        self._replicas = replicas
        self.registry = CollectorRegistry()
        self._aliases = aliases
        self._names = tuple(model_names)
        self._lock = threading.Lock()
        self._text, self._rendered_at = b"", 0.0
        self._seen: dict[int, EngineStats] = {}
        """What each replica's engine last told; under `_lock`, as is the text."""
        self._token_counts: tuple[Histogram, Histogram, Histogram] | None = None
        self._make_counters()
        self._make_histograms()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = self._gauge("build_info", "What is running.", ("version", "python", "torch", "transformers"))
        build.labels(
            version("basaran-ops"), platform.python_version(), version("torch"), version("transformers")
        ).set(1)

    # -- from requests --------------------------------------------------------------------------------

    def prompt_read(self, context: RequestContext, prompt_tokens: int, cached_tokens: int) -> None:
        self._prompt_tokens.labels(context.model).inc(prompt_tokens)

    def tokens_generated(self, context: RequestContext, count: int, gap: float | None) -> None:
        self._generation_tokens.labels(context.model).inc(count)
        if gap is not None:
            self._inter_token.labels(context.model).observe(gap / count)

    def request_ended(self, record: RequestRecord) -> None:
        model = record.context.model
        self._requests.labels(model, record.context.endpoint, record.outcome).inc()
        if record.client_gone:
            self._disconnects.labels(model).inc()
        self._latency.labels(model).observe(record.ended_at - record.arrived_at)
        if record.first_token_at is not None:
            self._first_token.labels(model).observe(record.first_token_at - record.arrived_at)
        self._observe_phases(model, record)
        if self._token_counts is not None:
            prompt, generation, limit = self._token_counts
            prompt.labels(model).observe(record.prompt_tokens)
            generation.labels(model).observe(record.completion_tokens)
            limit.labels(model).observe(record.max_tokens)

    def _observe_phases(self, model: str, record: RequestRecord) -> None:
        """Of each choice: it is the choices that queue, and that are generated."""
        for choice in record.choices:
            if choice.admitted_at is None:
                continue
            self._queue.labels(model).observe(max(0.0, choice.admitted_at - record.arrived_at))
            if choice.first_token_at is None or choice.last_token_at is None:
                continue
            self._prefill.labels(model).observe(max(0.0, choice.first_token_at - choice.admitted_at))
            decode = choice.last_token_at - choice.first_token_at
            self._decode.labels(model).observe(decode)
            if choice.tokens > 1:
                self._per_token.labels(model).observe(decode / (choice.tokens - 1))

    # -- from the server ------------------------------------------------------------------------------

    def request_rejected(self, reason: str) -> None:
        """A request for text was not admitted."""
        self._rejected.labels(reason).inc()

    def http_answered(self, method: str, route: str, status: int) -> None:
        """Any request was answered. `route` is the rule that matched it, "other" for none."""
        self._http.labels(method, route, f"{status // 100}xx").inc()

    def stream_opened(self) -> None:
        self._open_streams.labels(self._names[0]).inc()

    def stream_closed(self) -> None:
        self._open_streams.labels(self._names[0]).dec()

    # -- from engines ---------------------------------------------------------------------------------

    def step_done(self, replica: int, stats: EngineStats) -> None:
        """An engine told of a step. Its counts begin at 0 when it is replaced."""
        with self._lock:
            before = self._seen.get(replica, EngineStats())
            self._seen[replica] = stats
        if stats.step < before.step:
            before = EngineStats()
        name = self._names[0]
        if stats.step > before.step and stats.batch_size:
            self._batch_size.labels(name).observe(stats.batch_size)
        self._prefix_queries.labels(name).inc(stats.prefix_queries - before.prefix_queries)
        self._prefix_hits.labels(name).inc(stats.prefix_hits - before.prefix_hits)
        self._drafted.labels(name).inc(stats.drafted_tokens - before.drafted_tokens)
        self._accepted.labels(name).inc(stats.accepted_tokens - before.accepted_tokens)
        if stats.out_of_memory > before.out_of_memory:
            self._oom.labels(str(replica)).inc(stats.out_of_memory - before.out_of_memory)

    def model_loaded(self, info: ModelInfo) -> None:
        """A model is ready: now it is known how long texts can be."""
        with self._lock:
            if self._token_counts is not None:
                return
            buckets = _round_numbers(max(info.context_length, info.completion_length or 0))
            prompt, generation, limit = (
                self._histogram(name, description, buckets)
                for name, description in (
                    ("request_prompt_tokens", "Prompt tokens of a request."),
                    ("request_generation_tokens", "Generated tokens of a request."),
                    ("request_params_max_tokens", "Tokens that a choice of a request might have had."),
                )
            )
            self._token_counts = prompt, generation, limit

    # -- to scrapers ----------------------------------------------------------------------------------

    def render(self) -> bytes:
        """The text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
        with self._lock:
            fresh = time.monotonic() - self._rendered_at < CACHE_SECONDS
            if fresh and self._text:
                return self._text
        text = generate_latest(self.registry)
        if self._aliases:
            text += _aliased(text)
        with self._lock:
            self._text, self._rendered_at = text, time.monotonic()
        return text

    # -- making them ----------------------------------------------------------------------------------

    def _make_counters(self) -> None:
        self._requests = self._counter(
            "requests",
            "Requests that were admitted and have ended, by how.",
            ("model_name", "endpoint", "finished_reason"),
            (
                (name, endpoint, reason)
                for name in self._names
                for endpoint in ENDPOINTS
                for reason in OUTCOMES
            ),
        )
        self._rejected = self._counter(
            "requests_rejected",
            "Requests for text that were not admitted.",
            ("reason",),
            ((reason,) for reason in REJECTIONS),
        )
        names = [(name,) for name in self._names]
        label = ("model_name",)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read.", label, names)
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.", label, names)
        self._disconnects = self._counter(
            "client_disconnects", "Requests whose client left before their end.", label, names
        )
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked for in what was computed before.", label, names[:1]
        )
        self._prefix_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in what was computed before.", label, names[:1]
        )
        self._drafted = self._counter("draft_tokens", "Tokens guessed ahead and checked.", label, names[:1])
        self._accepted = self._counter(
            "accepted_draft_tokens", "Tokens guessed ahead that came true.", label, names[:1]
        )
        self._oom = self._counter(
            "device_oom",
            "Steps for which a replica's device had no memory left, by the replica's number.",
            ("device",),
            ((str(number),) for number in range(self._replicas)),
        )
        self._http = self._counter(
            "http_requests", "Answers of the API.", ("method", "route", "status"), [("GET", "/health", "2xx")]
        )
        self._open_streams = self._gauge("open_streams", "Streams being sent.", label)
        self._open_streams.labels(self._names[0]).set(0)

    def _make_histograms(self) -> None:
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", FIRST_TOKEN_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a choice.", TOKEN_BUCKETS
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time between a choice's tokens after its first.",
            TOKEN_BUCKETS,
        )
        self._latency = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end.", REQUEST_BUCKETS
        )
        self._queue = self._histogram(
            "request_queue_time_seconds", "From arrival to a choice's first step.", REQUEST_BUCKETS
        )
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "From a choice's first step to its first token.", REQUEST_BUCKETS
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "From a choice's first token to its last.", REQUEST_BUCKETS
        )
        self._batch_size = self._histogram("batch_size", "Sequences of an engine's step.", BATCH_BUCKETS)

    def _counter(
        self, name: str, description: str, labels: Sequence[str], values: Iterable[tuple[str, ...]]
    ) -> Counter:
        """With a series at 0 for each of the label values: a rate needs to see it begin."""
        counter = Counter(f"{PREFIX}_{name}", description, labels, registry=self.registry)
        for value in values:
            counter.labels(*value)
        return counter

    def _gauge(self, name: str, description: str, labels: Sequence[str]) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"{PREFIX}_{name}", description, ("model_name",), registry=self.registry, buckets=buckets
        )
        for model in self._names:
            histogram.labels(model)
        return histogram


def _round_numbers(most: int) -> list[float]:
    """1, 2, 5, 10, 20, 50, ... up to the first that is no less than `most`."""
    numbers: list[float] = []
    power = 1
    while True:
        for factor in (1, 2, 5):
            numbers.append(factor * power)
            if factor * power >= most:
                return numbers
        power *= 10


def _aliased(text: bytes) -> bytes:
    """The lines of families that vLLM has too, under its names."""
    prefixes = tuple(f"{PREFIX}_{suffix}" for suffix in ALIASES)
    copied = []
    for line in text.decode().splitlines():
        name = line.split(" ", 3)[2] if line.startswith("#") else line
        if name.startswith(prefixes):
            copied.append(line.replace(f"{PREFIX}_", "vllm:", 1) + "\n")
    return "".join(copied).encode()

"""What /metrics exposes, as rules and dashboards may use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

ANY = ()
"""The values of a label that has no fixed set of them."""

Labels = Mapping[str, tuple[str, ...]]

MODEL: Labels = {"model_name": ANY}
REPLICA: Labels = {"replica": ANY, "device": ANY}

TARGET: Labels = dict.fromkeys(("job", "instance", "namespace", "pod"), ANY)
"""What Prometheus adds to everything that it scrapes."""


@dataclass(frozen=True)
class Family:
    """A metric family; the name is that of its samples, so a counter's has its _total."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    labels: Labels = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    def series(self) -> Iterator[tuple[str, Labels]]:
        """The names that can be queried, each with its labels."""
        if self.kind != "histogram":
            yield self.name, self.labels
            return
        # As prometheus_client writes bounds, and Prometheus 3 rewrites those of others.
        bounds = (*(str(float(bound)) for bound in self.buckets), "+Inf")
        yield f"{self.name}_bucket", {**self.labels, "le": bounds}
        yield f"{self.name}_sum", self.labels
        yield f"{self.name}_count", self.labels


def _gauges(labels: Labels, *names: str) -> Iterator[Family]:
    return (Family(f"basaran_{name}", "gauge", labels) for name in names)


def _counters(labels: Labels, *names: str) -> Iterator[Family]:
    return (Family(f"basaran_{name}_total", "counter", labels) for name in names)


def _histograms(buckets: tuple[float, ...], *names: str) -> Iterator[Family]:
    return (Family(f"basaran_{name}", "histogram", MODEL, buckets) for name in names)


FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
)
TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 10),
)
REQUEST_BUCKETS = tuple(round(0.01 * 2**power, 2) for power in range(17))
# These end at the model's length; how many there are makes no difference to a query.
LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

SERVER = (
    *_gauges(MODEL, "num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"),
    *_gauges(MODEL, "pool_slots", "queue_capacity", "open_streams", "model_load_seconds"),
    *_gauges({**MODEL, "state": ("loading", "ready", "draining", "failed")}, "engine_state"),
    *_gauges(REPLICA, "replica_up", "replica_last_step_timestamp_seconds", "replica_step_age_seconds"),
    *_gauges({"device": ANY, "kind": ("used", "total")}, "device_memory_bytes"),
    *_gauges(dict.fromkeys(("version", "python", "torch", "transformers"), ANY), "build_info"),
    *_gauges(
        {**MODEL, **dict.fromkeys(("revision", "dtype", "device"), ANY), "runner": ("packed", "padded")},
        "model_info",
    ),
    *_counters(
        {
            **MODEL,
            "endpoint": ("completions", "chat"),
            "finished_reason": ("stop", "length", "tool_calls", "abort", "error", "timeout"),
        },
        "requests",
    ),
    *_counters(
        {
            "reason": (
                *("queue_full", "draining", "not_ready"),
                *("too_long", "invalid", "unauthorized", "unknown_model"),
            )
        },
        "requests_rejected",
    ),
    *_counters(
        MODEL,
        *("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"),
        *("draft_tokens", "accepted_draft_tokens"),
        "client_disconnects",
    ),
    *_counters({"device": ANY}, "device_oom"),
    *_counters({"replica": ANY}, "replica_restarts"),
    *_counters({"method": ANY, "route": ANY, "status": ("2xx", "3xx", "4xx", "5xx")}, "http_requests"),
    *_histograms(FIRST_TOKEN_BUCKETS, "time_to_first_token_seconds"),
    *_histograms(TOKEN_BUCKETS, "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
    *_histograms(
        REQUEST_BUCKETS,
        *("e2e_request_latency_seconds", "request_queue_time_seconds"),
        *("request_prefill_time_seconds", "request_decode_time_seconds"),
    ),
    *_histograms(
        LENGTH_BUCKETS, "request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens"
    ),
    *_histograms(BATCH_BUCKETS, "batch_size"),
)
"""Our own."""

PROCESS = (
    Family("process_cpu_seconds_total", "counter"),
    Family("process_resident_memory_bytes", "gauge"),
    Family("process_virtual_memory_bytes", "gauge"),
    Family("process_start_time_seconds", "gauge"),
    Family("process_open_fds", "gauge"),
    Family("process_max_fds", "gauge"),
    Family(
        "python_info",
        "gauge",
        dict.fromkeys(("implementation", "version", "major", "minor", "patchlevel"), ANY),
    ),
)
"""What prometheus_client adds by itself."""

AUTOSCALER: Labels = {"namespace": ANY, "horizontalpodautoscaler": ANY}

ELSEWHERE = (
    Family("up", "gauge"),
    Family("ALERTS", "gauge", {"alertname": ANY, "alertstate": ("pending", "firing"), "severity": ANY}),
    Family("kube_horizontalpodautoscaler_status_current_replicas", "gauge", AUTOSCALER),
    Family("kube_horizontalpodautoscaler_spec_max_replicas", "gauge", AUTOSCALER),
    Family("kube_horizontalpodautoscaler_spec_min_replicas", "gauge", AUTOSCALER),
    Family(
        "kube_horizontalpodautoscaler_status_condition",
        "gauge",
        {
            **AUTOSCALER,
            "condition": ("AbleToScale", "ScalingActive", "ScalingLimited"),
            "status": ("true", "false", "unknown"),
        },
    ),
    Family("keda_scaled_object_errors_total", "counter", {"namespace": ANY, "scaledObject": ANY}),
)
"""From Prometheus itself, kube-state-metrics and KEDA."""

SERIES: Mapping[str, Labels] = {
    name: {**TARGET, **labels}
    for family in (*SERVER, *PROCESS, *ELSEWHERE)
    for name, labels in family.series()
}
"""All that an expression may read, with its labels and their values."""

"""Gauges of the pool, read when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..outputs import ModelInfo
from ..pool import PoolStatus, ReplicaStatus
from ..stream_model import StreamModel
from .metrics import PREFIX

STATES = ("loading", "ready", "draining", "failed")


class PoolCollector(Collector):
    """What is going on now: nothing of it is counted, all of it is looked up."""

    def __init__(self, model: StreamModel, name: str, *, slots: int, queue_limit: int, revision: str) -> None:
        """`slots` and `queue_limit` are the pool's as a whole."""
        self._model = model
        self._name = name
        self._slots = slots
        self._queue_limit = queue_limit
        self._revision = revision

    def describe(self) -> list[Metric]:
        """Nothing: there is no pool yet when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        status, info = self._model.pool.status(), self._model.info
        yield self._gauge("num_requests_waiting", "Sequences that wait for a slot.", status.waiting)
        yield self._gauge("num_requests_running", "Sequences that hold a slot.", status.running)
        yield self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", _usage(status, info)
        )
        yield self._gauge("pool_slots", "Sequences that can run at once.", self._slots)
        yield self._gauge("queue_capacity", "Sequences that may wait.", self._queue_limit)
        load_seconds = 0.0 if info is None else info.load_seconds
        yield self._gauge("model_load_seconds", "Time that loading the model took.", load_seconds)
        yield self._engine_state(status)
        yield from self._replicas(status.replicas)
        if info is not None:
            yield self._model_info(info)

    def _gauge(self, name: str, description: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", description, labels=("model_name",))
        family.add_metric((self._name,), value)
        return family

    def _engine_state(self, status: PoolStatus) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}_engine_state", "1 for the state the server is in.", labels=("model_name", "state")
        )
        for state in STATES:
            family.add_metric((self._name, state), float(state == status.word))
        return family

    def _replicas(self, replicas: tuple[ReplicaStatus, ...]) -> Iterator[Metric]:
        labels = ("replica", "device")
        up = GaugeMetricFamily(f"{PREFIX}_replica_up", "Whether the engine takes requests.", labels=labels)
        stepped = GaugeMetricFamily(
            f"{PREFIX}_replica_last_step_timestamp_seconds", "When it last did a step.", labels=labels
        )
        age = GaugeMetricFamily(
            f"{PREFIX}_replica_step_age_seconds",
            "How long it has had work in hand and done no step; 0 without work.",
            labels=labels,
        )
        restarts = CounterMetricFamily(
            f"{PREFIX}_replica_restarts", "Times that the engine was replaced.", labels=("replica",)
        )
        memory = GaugeMetricFamily(
            # Each replica sees its own GPU as cuda:0: its number tells them apart.
            f"{PREFIX}_device_memory_bytes",
            "Memory of a replica's device, by the replica's number.",
            labels=("device", "kind"),
        )
        for replica in replicas:
            where = (str(replica.number), replica.device)
            up.add_metric(where, float(replica.state == "ready"))
            stepped.add_metric(where, replica.last_step_at)
            age.add_metric(where, replica.step_age)
            restarts.add_metric(where[:1], replica.restarts)
            memory.add_metric((where[0], "used"), replica.stats.memory_used)
            memory.add_metric((where[0], "total"), replica.stats.memory_total)
        yield from (up, stepped, age, restarts, memory)

    def _model_info(self, info: ModelInfo) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}_model_info",
            "What is served, and how it is run.",
            labels=("model_name", "revision", "dtype", "device", "runner"),
        )
        family.add_metric((self._name, self._revision, info.dtype, info.device, info.runner), 1)
        return family


def _usage(status: PoolStatus, info: ModelInfo | None) -> float:
    if info is None or not status.replicas:
        return 0.0
    capacity = info.slots * (info.context_length + (info.completion_length or 0)) * len(status.replicas)
    return min(1.0, sum(replica.stats.cached_tokens for replica in status.replicas) / capacity)

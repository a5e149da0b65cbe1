"""What a cluster would tell of an autoscaler: kube-state-metrics' series and KEDA's, on a port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

HPA = {"namespace": "prod", "horizontalpodautoscaler": "keda-hpa-basaran-ops"}


class Cluster:
    """An autoscaler of 1 to 4 servers that has 2 of them, and reads its metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "kube_horizontalpodautoscaler"
        self.current = self._gauge(f"{prefix}_status_current_replicas")
        self.current.labels(**HPA).set(2)
        self._gauge(f"{prefix}_spec_min_replicas").labels(**HPA).set(1)
        self._gauge(f"{prefix}_spec_max_replicas").labels(**HPA).set(4)
        condition = self._gauge(f"{prefix}_status_condition", "condition", "status")
        self.inactive = condition.labels(**HPA, condition="ScalingActive", status="false")
        self.errors = Counter(
            "keda_scaled_object_errors", "-", ["namespace", "scaledObject"], registry=self.registry
        ).labels(namespace="prod", scaledObject="basaran-ops")

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(name, "-", [*HPA, *labels], registry=self.registry)

    def reach_the_maximum(self) -> None:
        self.current.labels(**HPA).set(4)

    def lose_the_metrics(self) -> None:
        self.errors.inc()


@contextmanager
def cluster() -> Iterator[tuple[Cluster, int]]:
    """It, and the port that tells of it."""
    told = Cluster()
    server, thread = start_http_server(0, "127.0.0.1", told.registry)
    try:
        yield told, server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

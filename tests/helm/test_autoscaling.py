"""The autoscalers follow what waits and what runs, by series that the server exposes."""

from __future__ import annotations

import re

import pytest
import yaml

from ..deployments.expressions import faults, selectors
from ..deployments.metric_families import SERIES
from ..deployments.promtool import RULES
from .charts import CHART, Object, none, one, refusal, render

KEDA = {"enabled": True, "keda": {"serverAddress": "http://prometheus:9090"}}
HPA = {"enabled": True, "type": "hpa"}


def scaled(values: dict | None = None, **changes: object) -> Object:
    return one(render({"autoscaling": KEDA | changes} | (values or {})), "ScaledObject")["spec"]


def triggers(values: dict | None = None) -> dict[str, Object]:
    return {trigger["name"]: trigger for trigger in scaled(values)["triggers"]}


def hpa(values: dict | None = None, **changes: object) -> Object:
    return one(render({"autoscaling": HPA | changes} | (values or {})), "HorizontalPodAutoscaler")["spec"]


def test_without_an_autoscaler_there_are_as_many_pods_as_said() -> None:
    objects = render({"replicaCount": 3})
    assert one(objects, "Deployment")["spec"]["replicas"] == 3
    assert none(objects, "ScaledObject")
    assert none(objects, "HorizontalPodAutoscaler")


@pytest.mark.parametrize("autoscaling", [KEDA, HPA])
def test_with_one_the_deployment_says_no_number(autoscaling: dict) -> None:
    # A rollout would set it back to that.
    objects = render({"autoscaling": autoscaling, "replicaCount": 3})
    assert "replicas" not in one(objects, "Deployment")["spec"]


def test_keda_asks_for_averages_of_what_waits_and_of_what_runs() -> None:
    found = triggers()
    assert found.keys() == {"waiting", "running"}
    assert {trigger["metricType"] for trigger in found.values()} == {"AverageValue"}
    assert found["waiting"]["metadata"]["threshold"] == "1"
    assert found["running"]["metadata"]["threshold"] == "25.6"
    assert scaled()["pollingInterval"] == 15


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        ({"engine": {"slots": 10}}, "8"),
        ({"gpu": {"count": 4}, "engine": {"slots": 64}}, "204.8"),
        ({"engine": {"slots": 1}}, "0.8"),
        ({"engine": {"slots": 100000, "replicas": 100}}, "8000000"),
    ],
)
def test_running_counts_against_the_slots_of_all_engines_of_a_pod(values: dict, threshold: str) -> None:
    found = triggers(values)["running"]["metadata"]["threshold"]
    assert float(found) == float(threshold)
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", found), "KEDA reads it, and so do people"
    (metric,) = [m["pods"] for m in hpa(values)["metrics"] if m["pods"]["metric"]["name"].endswith("running")]
    assert metric["target"] == {"type": "AverageValue", "averageValue": f"{float(threshold) * 1000:.0f}m"}


def test_the_queries_read_only_series_and_labels_that_there_are() -> None:
    for trigger in triggers().values():
        assert faults(trigger["metadata"]["query"]) == []
        assert trigger["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize(
    ("pod", "counted"),
    [
        ("basaran-7d4b9c6f5-x2x4z", True),
        ("basaran-64445545-2bcdf", True),
        ("basaran-other-7d4b9c6f5-x2x4z", False),
        ("my-basaran-7d4b9c6f5-x2x4z", False),
        ("basaran-helm-test", False),
    ],
)
def test_the_queries_count_the_pods_of_the_release_alone(pod: str, counted: bool) -> None:
    for trigger in triggers().values():
        (selector,) = selectors(trigger["metadata"]["query"])
        matchers = {m.name: m.value for m in selector.matchers.matchers}
        assert matchers["namespace"] == "prod"
        assert bool(re.fullmatch(matchers["pod"], pod)) is counted


def test_the_hpa_asks_for_pods_metrics_that_the_server_has() -> None:
    metrics = hpa()["metrics"]
    assert {metric["type"] for metric in metrics} == {"Pods"}
    names = {metric["pods"]["metric"]["name"] for metric in metrics}
    assert names == {"basaran_num_requests_waiting", "basaran_num_requests_running"}
    assert names <= SERIES.keys()


@pytest.mark.parametrize("autoscaling", [KEDA, HPA])
def test_no_autoscaler_looks_at_cpu_or_gpu(autoscaling: dict) -> None:
    (found,) = [
        o
        for o in render({"autoscaling": autoscaling})
        if o["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
    ]
    assert not re.search("Resource|Utilization|cpu|gpu", repr(found["spec"]))


def test_both_go_up_in_steps_and_down_slowly() -> None:
    keda = scaled()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert keda == hpa()["behavior"]
    assert keda["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert keda["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]
    assert keda["scaleUp"]["policies"] == [{"type": "Pods", "value": 2, "periodSeconds": 60}]


def test_load_that_cannot_be_seen_is_taken_for_full_load() -> None:
    assert scaled(maxReplicas=7)["fallback"] == {"failureThreshold": 124, "replicas": 7}
    chosen = KEDA["keda"] | {"fallbackReplicas": 2, "fallbackAfter": 4}
    assert scaled(keda=chosen)["fallback"] == {"failureThreshold": 4, "replicas": 2}


@pytest.mark.parametrize("polling", [1, 15, 70, 10000])
@pytest.mark.parametrize("download", [False, True])
def test_a_first_start_is_no_failure_of_prometheus(polling: int, download: bool) -> None:
    # Or each installation would begin with as many pods as there may be.
    values = {"model": {"name": "org/model", "download": {"enabled": download}}}
    objects = render(values | {"autoscaling": KEDA | {"keda": KEDA["keda"] | {"pollingInterval": polling}}})
    looks = one(objects, "ScaledObject")["spec"]["fallback"]["failureThreshold"]
    start = one(objects, "Deployment")["spec"]["progressDeadlineSeconds"]
    assert start <= looks * polling < start + polling


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keda": {}}, "serverAddress is empty"),
        ({"minReplicas": 0}, "minReplicas"),
        ({"minReplicas": 5}, "more than maxReplicas"),
        ({"keda": KEDA["keda"] | {"fallbackReplicas": 9}}, "fallbackReplicas=9"),
        ({"type": "cpu"}, "type"),
        ({"targetSlotUsage": 1}, "targetSlotUsage"),
    ],
)
def test_what_would_never_scale_is_refused(changes: dict, reason: str) -> None:
    assert reason in refusal({"autoscaling": KEDA | changes})


@pytest.mark.parametrize("autoscaling", [KEDA, HPA])
@pytest.mark.parametrize("fullname", ["", "prose"])
def test_the_alerts_know_the_autoscaler_by_its_name(autoscaling: dict, fullname: str) -> None:
    (name,) = [
        o["metadata"]["name"]
        for o in render({"autoscaling": autoscaling, "fullnameOverride": fullname})
        if o["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
    ]
    known = set(re.findall(r'(?:scaledObject|horizontalpodautoscaler)=~"([^"]+)"', RULES.read_text()))
    assert known
    assert all(re.fullmatch(expression, name) for expression in known)


def test_a_secured_prometheus_is_asked_with_what_it_wants() -> None:
    chosen = KEDA["keda"] | {"triggerAuthentication": "prometheus"}
    for trigger in scaled(keda=chosen)["triggers"]:
        assert trigger["authenticationRef"] == {"name": "prometheus"}


def test_the_example_scrapes_what_its_autoscaler_reads() -> None:
    values = yaml.safe_load((CHART / "examples/autoscaled-values.yaml").read_text())
    assert values["metrics"]["podMonitor"]["enabled"]

"""Start, drain and end of a pod, and rollouts: times that fit together, with the server's own too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from basaran_ops.server.management import MAX_DELAY
from basaran_ops.server.worker import FINAL_SECONDS

from .charts import (
    CHART,
    FILES,
    SCHEMA,
    VALUES,
    Object,
    deployment,
    environment,
    none,
    one,
    pod,
    refusal,
    render,
    rendered_file,
    server,
)
from .generated import ROOT

# Not imported: that module is gunicorn's configuration and configures this process.
GUNICORN = ROOT / "basaran_ops/server/gunicorn_conf.py"
EXIT_SECONDS = int(re.search(r"^EXIT_SECONDS = (\d+)$", GUNICORN.read_text(), re.MULTILINE)[1])


def times(spec: Object) -> dict[str, int]:
    """The times of a rendered pod, from where Kubernetes and the server read them."""
    container = server(spec)
    path = container["lifecycle"]["preStop"]["httpGet"]["path"]
    readiness = container["readinessProbe"]
    return {
        "pre_stop": int(re.fullmatch(r"/drain\?delay=(\d+)", path)[1]),
        "drain": int(environment(container)["SERVER_DRAIN_TIMEOUT"]),
        "grace": spec["terminationGracePeriodSeconds"],
        "unready": readiness["periodSeconds"] * readiness["failureThreshold"],
    }


def test_the_defaults_are_fifteen_ninety_and_two_minutes() -> None:
    assert times(pod({})) == {"pre_stop": 15, "drain": 90, "grace": 120, "unready": 15}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_grace_period_covers_hook_drain_and_the_servers_own_end(file: Any) -> None:
    (workload,) = [o for o in rendered_file(file) if o["kind"] == "Deployment"]
    found = times(workload["spec"]["template"]["spec"])
    assert found["grace"] >= found["pre_stop"] + found["drain"] + EXIT_SECONDS + FINAL_SECONDS
    assert found["pre_stop"] >= found["unready"]


def test_the_time_to_exit_is_more_than_the_server_takes() -> None:
    properties = SCHEMA["properties"]["lifecycle"]["properties"]
    assert properties["exitSeconds"]["minimum"] > EXIT_SECONDS + FINAL_SECONDS
    assert properties["preStopSeconds"]["maximum"] <= MAX_DELAY


def test_hook_drain_and_grace_follow_their_values() -> None:
    chosen = {"preStopSeconds": 20, "drainSeconds": 300, "exitSeconds": 12}
    found = times(pod({"lifecycle": chosen}))
    assert (found["pre_stop"], found["drain"], found["grace"]) == (20, 300, 332)


def test_a_grace_period_may_be_longer_than_the_sum_and_never_shorter() -> None:
    assert times(pod({"lifecycle": {"terminationGracePeriodSeconds": 600}}))["grace"] == 600
    assert times(pod({"lifecycle": {"terminationGracePeriodSeconds": 120}}))["grace"] == 120
    assert "would be killed" in refusal({"lifecycle": {"terminationGracePeriodSeconds": 119}})


def test_the_hook_lasts_until_readiness_has_failed() -> None:
    assert "readiness" in refusal({"lifecycle": {"preStopSeconds": 14}})
    assert "readiness" in refusal({"lifecycle": {"readiness": {"failureThreshold": 4}}})


@pytest.mark.parametrize("probe", ["startup", "readiness", "liveness"])
def test_a_probe_is_over_before_the_next_begins(probe: str) -> None:
    message = refusal({"lifecycle": {probe: {"timeoutSeconds": 11}}})
    assert f"lifecycle.{probe}.timeoutSeconds" in message


def test_probes_ask_the_management_port_and_startup_asks_for_readiness() -> None:
    container = server(pod({}))
    asked = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {get["port"] for get in asked.values()} == {"management"}
    assert {name: get["path"] for name, get in asked.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }


def test_probes_have_the_times_that_a_busy_server_needs() -> None:
    container = server(pod({}))
    known = {
        name: [container[name][part] for part in ("periodSeconds", "failureThreshold", "timeoutSeconds")]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert known == {
        "startupProbe": [10, 180, 3],
        "readinessProbe": [5, 3, 3],
        "livenessProbe": [10, 6, 5],
    }


# -- rollouts --------------------------------------------------------------------------------------------


def strategy(values: dict) -> object:
    found = deployment(values)["strategy"]
    return found.get("rollingUpdate") or found["type"]


def test_a_gpu_pod_goes_before_its_successor_comes() -> None:
    assert strategy({"gpu": {"count": 1}}) == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_pod_on_the_cpu_comes_before_its_predecessor_goes() -> None:
    assert strategy({}) == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_volume_that_cannot_be_shared_is_given_up_first() -> None:
    unshared = {"persistence": {"enabled": True}}
    assert strategy({"cache": unshared}) == {"maxSurge": 0, "maxUnavailable": 1}
    shared = {"persistence": {"enabled": True, "accessModes": ["ReadWriteMany"]}}
    assert strategy({"cache": shared}) == {"maxSurge": 1, "maxUnavailable": 0}
    # Of a claim that exists the chart knows what it is told.
    existing = {"existingClaim": "models"}
    assert strategy({"cache": existing}) == {"maxSurge": 0, "maxUnavailable": 1}
    told = existing | {"persistence": {"accessModes": ["ReadWriteMany"]}}
    assert strategy({"cache": told}) == {"maxSurge": 1, "maxUnavailable": 0}


def test_who_has_a_spare_gpu_may_surge() -> None:
    chosen = {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy({"gpu": {"count": 1}, "strategy": chosen}) == chosen
    assert strategy({"strategy": {"maxSurge": "25%"}}) == {"maxSurge": "25%", "maxUnavailable": 0}


def test_recreate_can_be_chosen() -> None:
    assert strategy({"strategy": {"type": "Recreate"}}) == "Recreate"


@pytest.mark.parametrize("chosen", [{"maxSurge": 0}, {"maxSurge": 0, "maxUnavailable": "0%"}])
def test_a_rollout_that_cannot_begin_is_refused(chosen: dict) -> None:
    assert "no rollout could begin" in refusal({"strategy": chosen})


def test_recreate_with_a_surge_is_refused() -> None:
    assert "mean nothing to Recreate" in refusal({"strategy": {"type": "Recreate", "maxSurge": 1}})


def test_a_rollout_has_not_failed_while_a_model_may_still_be_loading() -> None:
    slow = {"lifecycle": {"startup": {"failureThreshold": 360}}}
    assert deployment({})["progressDeadlineSeconds"] > 10 * 180
    assert deployment(slow)["progressDeadlineSeconds"] > 10 * 360
    fetched = {"model": {"name": "org/model", "download": {"enabled": True, "timeoutSeconds": 7200}}}
    assert deployment(fetched)["progressDeadlineSeconds"] > 10 * 180 + 7200


def test_pods_restart_when_what_they_read_once_changes_and_not_for_keys() -> None:
    def checksum(values: dict) -> str:
        return deployment(values)["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum({"model": {"chatTemplate": "a"}}) != checksum({"model": {"chatTemplate": "b"}})
    assert checksum({"huggingFace": {"token": "a"}}) != checksum({"huggingFace": {"token": "b"}})
    # The server reads keys again by itself.
    assert checksum({"apiKeys": {"keys": ["a"]}}) == checksum({"apiKeys": {"keys": ["b"]}})


def test_another_version_of_the_chart_alone_restarts_no_pod() -> None:
    labels = deployment({})["template"]["metadata"]["labels"]
    assert labels.keys() == {f"app.kubernetes.io/{part}" for part in ("name", "instance", "component")}


def test_nodes_are_emptied_one_pod_at_a_time() -> None:
    budget = one(render({}), "PodDisruptionBudget")["spec"]
    # Not minAvailable: 1 of 1 pods would keep its node from ever being emptied.
    assert budget["maxUnavailable"] == 1
    assert none(render({"podDisruptionBudget": {"enabled": False}}), "PodDisruptionBudget")


@pytest.mark.parametrize("useless", [0, "0%", "-1", "150%"])
def test_a_budget_that_lets_no_pod_go_is_refused(useless: object) -> None:
    assert "maxUnavailable" in refusal({"podDisruptionBudget": {"maxUnavailable": useless}})


def test_the_readmes_times_are_the_defaults() -> None:
    text = (CHART / "README.md").read_text()
    for name, told in re.findall(r"\| `(\w+)`: (\d+(?: x \d+)?) \|", text):
        found = VALUES["lifecycle"][name]
        if isinstance(found, dict):
            found = f"{found['periodSeconds']} x {found['failureThreshold']}"
        assert str(found) == told, name

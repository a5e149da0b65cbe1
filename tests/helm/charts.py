"""Helm, and the objects that it renders."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .generated import CHART, ROOT

PROGRAMS = ("newest", "oldest")
"""Releases of Helm: see helm.txt."""
KUBERNETES = ("1.25.0", "1.37.0")
"""The oldest release that the chart is for, and the newest that there are schemas of."""
FILES = sorted([*(CHART / "ci").glob("*.yaml"), *(CHART / "examples").glob("*.yaml")])
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
RELEASE, NAMESPACE = "basaran", "prod"
EVERYTHING: dict[str, Any] = {
    "model": {"name": "org/model", "chatTemplate": "{{ messages }}", "download": {"enabled": True}},
    "huggingFace": {"token": "hf_token"},
    "apiKeys": {"keys": ["key"]},
    "cache": {"persistence": {"enabled": True, "accessModes": ["ReadWriteMany"]}},
    "ingress": {"enabled": True, "hosts": ["a.example.com"]},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
    "autoscaling": {"enabled": True, "keda": {"serverAddress": "http://prometheus:9090"}},
    "metrics": {name: {"enabled": True} for name in ("serviceMonitor", "rules", "dashboard")},
}
"""Values that make an object of nearly every template."""

Object = dict[str, Any]


class _UniqueKeys(yaml.CSafeLoader):
    """As the API server's decoder, which refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys}"
        return super().construct_mapping(node, deep)


def helm(
    *arguments: str | Path, program: str = "newest", stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    path = ROOT / ".venv/helm" / program
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: `make tools`"
    command = [path, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def template(
    values: Mapping[str, Any],
    *arguments: str,
    chart: Path = CHART,
    release: str = RELEASE,
    program: str = "newest",
) -> subprocess.CompletedProcess[str]:
    command = ("template", release, chart, "--namespace", NAMESPACE, "--values", "-", *arguments)
    return _remembered(program, json.dumps(values), *command)


@functools.cache
def _remembered(program: str, stdin: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Many sentences are about the same rendering."""
    return helm(*arguments, program=program, stdin=stdin)


def render(values: Mapping[str, Any], *arguments: str, **where: Any) -> list[Object]:
    """What `helm template` makes of the values."""
    done = template(values, *arguments, **where)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


def parse(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, _UniqueKeys) if document]


def rendered_text(file: Path, kubernetes: str = KUBERNETES[-1]) -> str:
    done = template(yaml.safe_load(file.read_text()), "--kube-version", kubernetes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def rendered_file(file: Path, kubernetes: str = KUBERNETES[-1]) -> list[Object]:
    return parse(rendered_text(file, kubernetes))


def refusal(values: Mapping[str, Any], program: str = "newest") -> str:
    """Why these values are refused. Fails if they are not."""
    done = template(values, program=program)
    assert done.returncode != 0, f"nothing is wrong with {values}"
    return done.stderr


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm does: maps are merged, all else is replaced."""
    both = dict(values)
    for name, change in changes.items():
        old = values.get(name)
        both[name] = merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return both


def one(objects: list[Object], kind: str, name: str = RELEASE) -> Object:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def none(objects: list[Object], kind: str) -> bool:
    return all(o["kind"] != kind for o in objects)


def deployment(values: Mapping[str, Any]) -> Object:
    return one(render(values), "Deployment")["spec"]


def pod(values: Mapping[str, Any]) -> Object:
    return deployment(values)["template"]["spec"]


def server(pod_spec: Object) -> Object:
    (container,) = [c for c in pod_spec["containers"] if c["name"] == "server"]
    return container


def environment(container: Object) -> dict[str, str]:
    """Its variables but for those that come from elsewhere."""
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names)), "a variable is there twice"
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}

"""The chart as a whole: what Helm says of it, and what of it follows from other files."""

from __future__ import annotations

import copy
import functools
import json
import operator
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

import basaran_ops

from . import generated
from .charts import (
    EVERYTHING,
    FILES,
    KUBERNETES,
    PROGRAMS,
    SCHEMA,
    VALUES,
    Object,
    helm,
    merged,
    one,
    refusal,
    render,
    rendered_file,
    rendered_text,
    template,
)
from .generated import CHART, COPIES, comments

TEMPLATES = [p for p in (CHART / "templates").rglob("*.yaml") if p.name != "extra-objects.yaml"]
FREE = {
    *("commonLabels", "model.adapters", "settings", "podSecurityContext", "securityContext", "podLabels"),
    *("podAnnotations", "nodeSelector", "affinity", "resources.requests", "resources.limits", "global"),
}
"""Maps whose keys are the user's. Lists of Kubernetes' own objects have no keys of ours."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_helm_finds_nothing_wrong_with_it(file: Path) -> None:
    result = helm("lint", "--strict", CHART, "--values", file)
    assert result.returncode == 0, result.stdout
    assert "[WARNING]" not in result.stdout


def test_an_older_helm_finds_nothing_wrong_with_it() -> None:
    result = helm("lint", "--strict", CHART, program="oldest")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_release_of_helm_renders_the_same(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    oldest = render(values, "--kube-version", KUBERNETES[-1], program="oldest")
    assert sorted(rendered_file(file), key=json.dumps) == sorted(oldest, key=json.dumps)


def test_each_release_of_kubernetes_gets_the_same() -> None:
    # What does not ask for the cluster's abilities is rendered alike on each.
    asking = [path.name for path in (CHART / "templates").rglob("*.*") if ".Capabilities" in path.read_text()]
    assert asking == ["pdb.yaml"]
    oldest, newest = (render({}, "--kube-version", version) for version in KUBERNETES)
    kept = one(newest, "PodDisruptionBudget")["spec"].pop("unhealthyPodEvictionPolicy")
    assert kept == "AlwaysAllow", "a pod that cannot start would keep its node from being emptied"
    assert oldest == newest


def test_the_package_renders_as_the_directory_does(tmp_path: Path) -> None:
    packaged = helm("package", CHART, "--destination", tmp_path)
    assert packaged.returncode == 0, packaged.stderr
    (package,) = tmp_path.glob("*.tgz")
    assert package.name == f"basaran-ops-{chart()['version']}.tgz"
    everything = {
        "metrics": {"rules": {"enabled": True}, "dashboard": {"enabled": True}},
        "model": {"name": "org/model", "download": {"enabled": True}},
    }
    assert render(everything, chart=package) == render(everything)


def test_an_older_kubernetes_is_refused() -> None:
    done = template({}, "--kube-version", "1.24.17")
    assert "1.24.17" in done.stderr
    assert done.returncode != 0


def chart() -> dict:
    return yaml.safe_load((CHART / "Chart.yaml").read_text())


def test_it_installs_the_release_that_it_comes_with() -> None:
    assert chart()["appVersion"] == basaran_ops.__version__


def test_a_template_is_of_one_kind_and_all_files_have_one_object() -> None:
    for path in TEMPLATES:
        assert len(re.findall(r"^kind: ", path.read_text(), re.MULTILINE)) == 1, path.name


def test_every_template_is_rendered_by_some_values() -> None:
    text = "\n".join(rendered_text(file) for file in FILES)
    sources = set(re.findall(r"^# Source: basaran-ops/(.+)$", text, re.MULTILINE))
    assert {str(path.relative_to(CHART)) for path in TEMPLATES} <= sources
    assert "templates/extra-objects.yaml" in sources


def test_every_value_differs_from_its_default_in_some_file() -> None:
    """What no file sets is tried by nobody."""
    tried = {path for file in FILES for path, _ in leaves(yaml.safe_load(file.read_text()))}
    missing = {path for path, _ in leaves(VALUES) if not any(f"{t}.".startswith(f"{path}.") for t in tried)}
    assert {path for path in missing if not path.startswith(UNTRIED)} == set()


UNTRIED = (
    # One probe is as another, and what secures by default is looked at as it is.
    *("lifecycle.startup", "lifecycle.liveness", "podSecurityContext", "securityContext"),
    *("image.tag", "image.pullPolicy", "metrics.dashboard.labels"),
)


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# -- the schema ------------------------------------------------------------------------------------------


def maps(values: dict, prefix: str = "") -> Iterator[str]:
    """Paths of the maps that the chart defines."""
    yield prefix.removesuffix(".")
    for name, value in values.items():
        path = prefix + name
        if isinstance(value, dict) and path not in FREE and not path.endswith(("labels", "annotations")):
            yield from maps(value, path + ".")


def nested(path: str, value: object) -> dict:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def schema_faults(values: dict) -> str:
    """What the schema says of the defaults with these values."""
    return faults_of(merged(VALUES, values))


def faults_of(values: dict) -> str:
    return "\n".join(error.message for error in Draft7Validator(SCHEMA).iter_errors(values))


def test_the_schema_takes_the_defaults() -> None:
    assert faults_of(VALUES) == ""


@pytest.mark.parametrize("path", list(maps(VALUES)))
def test_a_key_that_there_is_not_is_refused(path: str) -> None:
    assert "nonsense" in schema_faults(nested(f"{path}.nonsense".removeprefix("."), 1))


@pytest.mark.parametrize("path", [path for path, value in leaves(VALUES) if not path.startswith(tuple(FREE))])
def test_a_value_of_another_type_is_refused(path: str) -> None:
    assert schema_faults(nested(path, {"a": ["map"]})) != ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_helm_asks_the_schema(program: str) -> None:
    assert "nonsense" in refusal({"model": {"nonsense": 1}}, program)
    assert "count" in refusal({"gpu": {"count": 0.5}}, program)


def test_the_schema_knows_each_value_and_no_other() -> None:
    assert SCHEMA["properties"].keys() - {"global"} == VALUES.keys()


def paths(values: dict, prefix: str = "") -> Iterator[str]:
    """Of each value, and of each map of values."""
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")


def without(path: str) -> dict:
    """The defaults as Helm shows them to the schema where a value is null."""
    values = copy.deepcopy(VALUES)
    *parents, name = path.split(".")
    del functools.reduce(operator.getitem, parents, values)[name]
    return values


NULLABLE = [path for path in paths(VALUES) if not faults_of(without(path))]


@pytest.mark.parametrize("path", NULLABLE)
def test_null_leaves_nothing_behind_where_it_is_taken(path: str) -> None:
    objects = render(merged(EVERYTHING, nested(path, None)))
    assert [s for s in scalars(objects) if s is None or re.search("<nil>|<no value>|%!", str(s))] == []


def scalars(part: object) -> Iterator[object]:
    """All that is in objects but for maps and lists."""
    if isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from scalars(inner)
    else:
        yield part


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "path",
    [
        *(
            "lifecycle.drainSeconds",
            "lifecycle.readiness",
            "cache.mountPath",
            "ports.http",
            "gpu",
            "resources",
        ),
        *(
            "settings",
            "model.download.timeoutSeconds",
            "autoscaling.scaleUp.pods",
            "image.tag",
            "replicaCount",
        ),
    ],
)
def test_null_is_refused_where_a_value_is_needed(path: str, program: str) -> None:
    assert path.rpartition(".")[2] in refusal(nested(path, None), program)


def test_what_may_be_null_is_what_has_a_meaning_then() -> None:
    unset = {path for path, value in leaves(VALUES) if value is None}
    others = (
        "podSecurityContext",
        "securityContext",
        "resources.",
        "httpRoute.timeouts",
        "metrics.dashboard.labels.",
    )
    assert {path for path in NULLABLE if not path.startswith(others)} == unset


@pytest.mark.parametrize("release", ["yes", "null", "2024", "1e3"])
def test_a_name_is_text_whatever_it_looks_like(release: str) -> None:
    def called(name: str) -> list[Object]:
        secret = {"existingSecret": name, "existingSecretKey": name}
        named = {
            "fullnameOverride": name if name.isalpha() else "a",
            "nameOverride": name,
            "cache": {"persistence": {"storageClass": name}},
            "serviceAccount": {"name": name},
            "runtimeClassName": name,
            "priorityClassName": name,
            "huggingFace": secret | {"token": ""},
            "apiKeys": secret | {"keys": []},
            "ingress": {"className": name},
            "httpRoute": {"inferencePool": name},
            "autoscaling": {"keda": {"triggerAuthentication": name}},
            "networkPolicy": {"apiFrom": [{"podSelector": {}}]},
        }
        made = render(merged(EVERYTHING, named), release=name)
        existing = {"cache": {"existingClaim": name, "persistence": {"enabled": False}}}
        return made + render(merged(merged(EVERYTHING, named), existing), release=name)

    plain = json.dumps(called("word" if release.isalpha() else "w0rd"), sort_keys=True)
    expected = re.sub("w[o0]rd", release, plain)
    assert json.dumps(called(release), sort_keys=True) == expected


@pytest.mark.parametrize("size", [0, 1048576, 3221225472, "3Gi", "3221225472"])
def test_bytes_may_be_a_number(size: int | str) -> None:
    assert schema_faults({"tmp": {"size": size}, "resources": {"requests": {"memory": size}}}) == ""


def test_a_number_of_bytes_is_written_out() -> None:
    large = {"limits": {"memory": 8589934592}, "requests": {"memory": 8589934592}}
    sizes = {"shm": {"size": 3221225472}, "tmp": {"size": 3221225472}, "cache": {"sizeLimit": 3221225472}}
    spec = one(render({"resources": large} | sizes), "Deployment")["spec"]["template"]["spec"]
    assert {volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"]} == {"3221225472"}
    resources = spec["containers"][0]["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == 8589934592
    claim = {"persistence": {"enabled": True, "size": 53687091200}}
    made = one(render({"cache": claim}), "PersistentVolumeClaim", "basaran-models")
    assert made["spec"]["resources"]["requests"]["storage"] == "53687091200"


@pytest.mark.parametrize("size", [-1, 1.5, "1Xi", True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    assert schema_faults({"tmp": {"size": size}}) != ""


@pytest.mark.parametrize(
    "variable", [{"name": "A", "value": 1}, {"name": "A", "value": True}, {"value": "1"}]
)
def test_a_variable_is_text_and_has_a_name(variable: dict) -> None:
    assert schema_faults({"extraEnv": [variable]}) != ""


# -- what is written -------------------------------------------------------------------------------------


def test_the_readme_the_schema_and_the_copies_are_up_to_date() -> None:
    assert (CHART / "README.md").read_text() == generated.readme(), "run `make docs`"
    assert (CHART / "values.schema.json").read_text() == generated.schema(), "run `make docs`"
    for copied, original in COPIES.items():
        assert copied.read_bytes() == original.read_bytes(), "run `make docs`"


def test_every_value_has_a_comment() -> None:
    said = dict(comments())
    documented = [path for path in said if not any(path.startswith(free + ".") for free in FREE - CONTEXTS)]
    parents = {path.rpartition(".")[0] for path in documented}
    assert [path for path in documented if path not in parents and not said[path]] == []


CONTEXTS = {"podSecurityContext", "securityContext"}


def test_every_file_that_the_readme_names_is_there() -> None:
    names = re.findall(r"`(ci|examples)/`", (CHART / "README.md").read_text())
    assert sorted(names) == ["ci", "examples"]
    for name in names:
        assert list((CHART / name).glob("*-values.yaml"))


def test_the_readme_asks_for_a_completion_when_a_server_is_there() -> None:
    text = (CHART / "README.md").read_text()
    minutes = int(re.search(r"helm install --wait --timeout (\d+)m [^$]+\$ helm test", text)[1])
    assert minutes * 60 >= one(render({}), "Deployment")["spec"]["progressDeadlineSeconds"]


def test_every_value_that_the_readme_and_the_notes_name_is_there() -> None:
    known = set(dict(comments()))
    text = (CHART / "README.md").read_text() + (CHART / "templates/NOTES.txt").read_text()
    sections = "|".join(name for name, value in VALUES.items() if isinstance(value, dict) and value)
    named = set(re.findall(rf"(?<![\w./-])((?:{sections})(?:\.\w+)+)", text))
    assert len(named) > 20
    assert {name for name in named if name not in known and not name.startswith("resources.")} == set()

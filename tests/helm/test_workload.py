"""The pod: what it may do, what it gets, where it runs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .charts import (
    EVERYTHING,
    FILES,
    Object,
    deployment,
    none,
    one,
    pod,
    refusal,
    render,
    rendered_file,
    server,
    template,
)
from .generated import ROOT

RELEASE_WORKFLOW = ROOT / ".github/workflows/release.yml"


def pods(objects: list[Object]) -> list[Object]:
    found = [o["spec"] for o in objects if o["kind"] == "Pod"]
    return found + [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_our_containers_may_do_nothing_that_they_need_not(file: Any) -> None:
    for spec in pods(rendered_file(file)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        # A Service named basaran would set BASARAN_PORT=tcp://... in each pod.
        assert spec["enableServiceLinks"] is False
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            if "basaran-ops" in container["image"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["readOnlyRootFilesystem"] is True
                assert context["capabilities"] == {"drop": ["ALL"]}


def test_users_and_groups_are_the_images_and_can_be_the_platforms() -> None:
    context = pod({})["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (10001, 10001, 10001)
    platform = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    assert "runAsUser" not in pod({"podSecurityContext": platform})["securityContext"]


def test_what_is_written_to_is_a_volume() -> None:
    spec = pod({})
    mounts = {mount["mountPath"]: mount["name"] for mount in server(spec)["volumeMounts"]}
    assert mounts.keys() == {"/models", "/tmp", "/dev/shm"}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert all("emptyDir" in volumes[name] for name in mounts.values())


def test_the_command_is_the_servers() -> None:
    assert server(pod({}))["command"] == ["python", "-m", "basaran_ops"]


# -- the image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "reference", "policy"),
    [
        ({}, "basaran-ops:0.1.0", "Always"),
        ({"repository": "registry:5000/a/b", "tag": "1"}, "registry:5000/a/b:1", "Always"),
        ({"digest": f"sha256:{'0' * 64}"}, f"basaran-ops@sha256:{'0' * 64}", "IfNotPresent"),
        ({"pullPolicy": "Never"}, "basaran-ops:0.1.0", "Never"),
    ],
)
def test_the_image_is_that_of_the_tag_or_of_the_digest(image: dict, reference: str, policy: str) -> None:
    for spec in pods(render({"image": image})):
        for container in spec["containers"]:
            assert (container["image"], container["imagePullPolicy"]) == (reference, policy)


@pytest.mark.parametrize("digest", ["0" * 64, "sha256:abc", "latest"])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    assert "digest" in refusal({"image": {"digest": digest}})


CUDA = re.search(r"suffix: (-cu\d+)$", RELEASE_WORKFLOW.read_text(), re.MULTILINE)[1]
"""What a release adds to the tags of images for NVIDIA's GPUs."""


@pytest.mark.parametrize(
    ("values", "tag"),
    [
        ({"gpu": {"count": 1}}, f"0.1.0{CUDA}"),
        ({"gpu": {"count": 1, "resource": "nvidia.com/mig-3g.40gb"}}, f"0.1.0{CUDA}"),
        ({"gpu": {"count": 1, "resource": "amd.com/gpu"}}, "0.1.0"),
        ({"gpu": {"count": 1}, "image": {"tag": "mine"}}, "mine"),
    ],
)
def test_pods_with_gpus_get_the_image_for_them(values: dict, tag: str) -> None:
    for spec in pods(render(values)):
        assert [container["image"] for container in spec["containers"]] == [f"basaran-ops:{tag}"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_file_of_values_gives_gpus_to_an_image_without(file: Any) -> None:
    (workload,) = [o for o in rendered_file(file) if o["kind"] == "Deployment"]
    container = server(workload["spec"]["template"]["spec"])
    gpus = any(name.startswith("nvidia.com/") for name in container["resources"].get("limits", {}))
    if "@" not in container["image"]:
        assert container["image"].endswith(CUDA) is gpus


# -- resources -------------------------------------------------------------------------------------------


def test_gpus_are_asked_for_and_limited_alike_and_the_values_stay_as_they_are() -> None:
    resources = server(pod({"gpu": {"count": 2}}))["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "2"
    assert resources["requests"]["memory"] == "4Gi"


def test_an_init_container_takes_no_gpu() -> None:
    spec = pod({"gpu": {"count": 1}, "model": {"name": "org/m", "download": {"enabled": True}}})
    assert "nvidia.com/gpu" not in spec["initContainers"][0]["resources"]["limits"]


def test_the_gpus_resource_can_be_another() -> None:
    resources = server(pod({"gpu": {"count": 1, "resource": "nvidia.com/mig-3g.40gb"}}))["resources"]
    assert resources["limits"]["nvidia.com/mig-3g.40gb"] == "1"


@pytest.mark.parametrize("count", [0.5, -1, "1"])
def test_gpus_are_whole(count: object) -> None:
    assert "gpu" in refusal({"gpu": {"count": count}})


@pytest.mark.parametrize(
    "values",
    [
        {"gpu": {"count": 3, "perReplica": 2}},
        {"gpu": {"count": 4}, "engine": {"replicas": 2}},
        {"gpu": {"count": 1}, "engine": {"replicas": 2}},
        {"gpu": {"count": 1, "perReplica": 2}},
        {"gpu": {"count": 0, "perReplica": 2}},
    ],
)
def test_gpus_that_would_be_missing_or_idle_are_refused(values: dict) -> None:
    assert "gpu.perReplica" in refusal(values)


@pytest.mark.parametrize("part", ["requests", "limits"])
def test_gpus_are_counted_in_one_place(part: str) -> None:
    assert "gpu.count does" in refusal({"resources": {part: {"nvidia.com/gpu": 1}}})


def test_shared_memory_is_sized_and_counts_as_memory() -> None:
    (shm,) = [v for v in pod({"shm": {"size": "1Gi"}})["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    assert "counts as memory" in refusal({"shm": {"size": "4Gi"}})
    assert "counts as memory" in refusal({"shm": {"size": "4.5G"}})
    pod({"shm": {"size": "4095Mi"}})


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        ({"memory": "8Gi"}, {"memory": "7Gi"}),
        ({"memory": "8Gi"}, {"memory": "8G"}),
        ({"memory": 8589934592}, {"memory": "7Gi"}),
        ({"cpu": 5}, {"cpu": "4"}),
        ({"cpu": "4001m"}, {}),
        ({"ephemeral-storage": "2Gi"}, {"ephemeral-storage": "1Gi"}),
    ],
)
def test_more_than_may_be_used_cannot_be_set_aside(request_: dict, limit: dict) -> None:
    (name,) = request_
    asked = {"requests": request_, "limits": limit}
    assert f"is more than resources.limits.{name}" in refusal({"resources": asked})
    pod({"resources": asked | {"limits": {"memory": "8Gi"} | request_}})


# -- the cache -------------------------------------------------------------------------------------------


def models(values: dict) -> Object:
    (volume,) = [v for v in pod(values)["volumes"] if v["name"] == "models"]
    return {key: value for key, value in volume.items() if key != "name"}


def test_models_are_in_the_pod_in_a_claim_or_in_one_that_exists() -> None:
    assert models({}) == {"emptyDir": {}}
    assert models({"cache": {"sizeLimit": "10Gi"}}) == {"emptyDir": {"sizeLimit": "10Gi"}}
    made = {"persistence": {"enabled": True}}
    assert models({"cache": made}) == {"persistentVolumeClaim": {"claimName": "basaran-models"}}
    assert models({"cache": {"existingClaim": "x"}}) == {"persistentVolumeClaim": {"claimName": "x"}}
    assert none(render({"cache": {"existingClaim": "x"}}), "PersistentVolumeClaim")


def test_a_claim_outlives_the_release() -> None:
    claim = one(
        render({"cache": {"persistence": {"enabled": True}}}), "PersistentVolumeClaim", "basaran-models"
    )
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_annotations_of_users_are_there_once_and_may_give_the_claim_to_the_release() -> None:
    chosen = {"helm.sh/resource-policy": "delete", "team": "platform"}
    values = {"cache": {"persistence": {"enabled": True, "annotations": chosen}}}
    claim = one(render(values), "PersistentVolumeClaim", "basaran-models")
    assert claim["metadata"]["annotations"] == chosen


def test_no_annotation_of_a_pod_displaces_the_checksum() -> None:
    name = "checksum/config"
    ours = deployment({})["template"]["metadata"]["annotations"]
    given = deployment({"podAnnotations": {name: "x", "a": "b"}})["template"]["metadata"]["annotations"]
    assert given == ours | {"a": "b"}
    assert name in ours


@pytest.mark.parametrize(
    "pods_asked",
    [
        {"replicaCount": 2},
        {"autoscaling": {"enabled": True, "keda": {"serverAddress": "http://prometheus"}}},
    ],
)
def test_pods_that_cannot_share_their_claim_are_refused(pods_asked: dict) -> None:
    assert "cannot share a claim" in refusal({"cache": {"persistence": {"enabled": True}}} | pods_asked)
    shared = {"persistence": {"enabled": True, "accessModes": ["ReadWriteMany"]}}
    render({"cache": shared} | pods_asked)


def test_a_claim_is_made_or_exists() -> None:
    message = refusal({"cache": {"existingClaim": "x", "persistence": {"enabled": True}}})
    assert "exclude each other" in message


@pytest.mark.parametrize(
    "path", ["/tmp", "/tmp/", "/dev", "/dev/shm", "/etc/basaran-ops", "/opt", "/.", "//"]
)
def test_models_hide_nothing_that_the_server_needs(path: str) -> None:
    assert "would hide" in refusal({"cache": {"mountPath": path}})


@pytest.mark.parametrize("path", ["models", "/a:b", "/a b", "/$(HOME)", ""])
def test_a_path_that_no_mount_takes_is_refused(path: str) -> None:
    assert "mountPath" in refusal({"cache": {"mountPath": path}})


@pytest.mark.parametrize("path", ["/models", "/tmp/models", "/data/basaran_ops.v1", "/etc-models"])
def test_models_may_be_anywhere_else(path: str) -> None:
    assert {"name": "models", "mountPath": path} in server(pod({"cache": {"mountPath": path}}))[
        "volumeMounts"
    ]


@pytest.mark.parametrize(
    ("value", "added"),
    [
        *(("extraContainers", {"name": name, "image": "x"}) for name in ("server", "download")),
        *(("initContainers", {"name": name, "image": "x"}) for name in ("server", "download")),
        *(("extraVolumes", {"name": n}) for n in ("models", "tmp", "shm", "api-keys", "chat-template")),
        *(
            ("extraVolumeMounts", {"name": "x", "mountPath": path})
            for path in ("/models", "/tmp/", "/dev/shm")
        ),
    ],
)
def test_what_is_added_displaces_nothing_of_the_chart_s(value: str, added: dict) -> None:
    assert value in refusal({value: [added]})


@pytest.mark.parametrize("name", ["", "org/model"])
def test_a_model_that_is_nowhere_is_refused(name: str) -> None:
    assert "is in no volume" in refusal({"model": {"name": name, "localFilesOnly": True}})
    render({"model": {"name": name, "localFilesOnly": True}, "cache": {"existingClaim": "x"}})


def test_fetching_a_model_that_must_not_be_fetched_is_refused() -> None:
    chosen = {"name": "/models/x", "localFilesOnly": True, "download": {"enabled": True}}
    assert "exclude each other" in refusal({"model": chosen})


@pytest.mark.parametrize("adapters", [{"a=b": "x"}, {"a,b": "x"}, {"a": "x,y"}, {"": "x"}, {"a": ""}])
def test_adapters_that_no_list_can_hold_are_refused(adapters: dict) -> None:
    assert "adapters" in refusal({"model": {"name": "org/m", "adapters": adapters}})


# -- where it runs ---------------------------------------------------------------------------------------


def test_pods_are_placed_as_asked() -> None:
    asked = {
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
    }
    spec = pod(asked)
    assert {name: spec[name] for name in asked} == asked


def test_pods_are_spread_over_nodes_where_that_is_possible() -> None:
    found = deployment({})
    (constraint,) = found["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
    assert constraint["labelSelector"] == found["selector"]


def test_a_constraint_with_a_selector_keeps_it() -> None:
    given = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "all"}},
    }
    assert pod({"topologySpreadConstraints": [given]})["topologySpreadConstraints"] == [given]


def test_whatever_else_a_pod_needs_can_be_added() -> None:
    added = {"name": "x", "image": "example:1"}
    spec = pod(
        {
            "extraEnv": [{"name": "A", "value": "b"}],
            "extraEnvFrom": [{"secretRef": {"name": "proxy"}}],
            "extraVolumes": [{"name": "v", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
            "extraContainers": [added],
            "initContainers": [added],
            "imagePullSecrets": [{"name": "registry"}],
        }
    )
    assert {"name": "A", "value": "b"} in server(spec)["env"]
    assert server(spec)["envFrom"] == [{"secretRef": {"name": "proxy"}}]
    assert {"name": "v", "emptyDir": {}} in spec["volumes"]
    assert {"name": "v", "mountPath": "/v"} in server(spec)["volumeMounts"]
    assert spec["containers"][1:] == [added]
    assert spec["initContainers"] == [added]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


# -- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("basaran", {}, "basaran"),
        ("my-basaran", {}, "my-basaran"),
        ("prose", {}, "prose-basaran-ops"),
        ("prose", {"nameOverride": "llm"}, "prose-llm"),
        ("prose", {"fullnameOverride": "exactly"}, "exactly"),
        ("prose.v2", {}, "prose-v2-basaran-ops"),
        ("basaran.v2", {}, "basaran-v2"),
        ("2024", {"fullnameOverride": "y2024"}, "y2024"),
        # A pod's name has 17 characters more, and 63 at most.
        ("r" * 53, {}, "r" * 46),
    ],
)
def test_names_follow_the_release(release: str, values: dict, name: str) -> None:
    (workload,) = [o for o in render(values, release=release) if o["kind"] == "Deployment"]
    assert workload["metadata"]["name"] == name


@pytest.mark.parametrize("release", ["2024", "1-basaran"])
def test_a_name_that_no_service_may_have_is_refused(release: str) -> None:
    done = template({}, release=release)
    assert "set fullnameOverride" in done.stderr
    assert done.returncode != 0


def test_the_chart_s_name_has_no_dots_in_names() -> None:
    assert "nameOverride" in refusal({"nameOverride": "a.b"})


@pytest.mark.parametrize("release", ["basaran", "r" * 53])
def test_every_name_is_one_that_its_object_may_have(release: str) -> None:
    for o in render(EVERYTHING, release=release):
        assert re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", o["metadata"]["name"])


def test_releases_with_names_that_begin_alike_do_not_meet() -> None:
    first, second = (
        {(o["kind"], o["metadata"]["name"]) for o in render(EVERYTHING, release=release)}
        for release in ("basaran", "basaran-test")
    )
    assert first & second == set()


def test_the_chart_s_own_test_runs_where_the_server_may() -> None:
    asked = {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    spec = one(render(asked), "Pod", "basaran-helm-test")["spec"]
    assert {name: spec[name] for name in asked} == asked


def test_labels_of_users_never_displace_those_that_select() -> None:
    strange = {"app.kubernetes.io/name": "other", "team": "platform"}
    found = deployment({"podLabels": strange, "commonLabels": strange})
    labels = found["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "basaran-ops"
    assert labels["team"] == "platform"


def test_a_service_account_is_made_named_or_left_alone() -> None:
    account = one(render({}), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod({})["serviceAccountName"] == "basaran"
    assert pod({"serviceAccount": {"create": False}})["serviceAccountName"] == "default"
    assert none(render({"serviceAccount": {"create": False}}), "ServiceAccount")
    assert pod({"serviceAccount": {"create": False, "name": "x"}})["serviceAccountName"] == "x"


def test_objects_can_be_added_as_maps_and_as_text() -> None:
    as_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-a"}}
    as_text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Values.model.name }}-b\n"
    objects = render({"extraObjects": [as_map, as_text], "model": {"name": "x"}})
    assert one(objects, "ConfigMap", "basaran-a")
    assert one(objects, "ConfigMap", "x-b")

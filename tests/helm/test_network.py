"""Who reaches the pod, and by which way; and whom it reaches."""

from __future__ import annotations

from typing import Any

import pytest

from basaran_ops.settings import Settings

from .charts import FILES, Object, none, one, refusal, render, rendered_file

ROUTE = {"enabled": True, "parentRefs": [{"name": "gateway"}]}


# -- Services --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_management_port_is_never_with_the_api_nor_for_the_world(file: Any) -> None:
    services = [o for o in rendered_file(file) if o["kind"] == "Service"]
    for service in services:
        targets = [port["targetPort"] for port in service["spec"]["ports"]]
        assert targets in (["http"], ["management"])
        if targets == ["management"]:
            assert service["spec"]["clusterIP"] == "None"
            assert "type" not in service["spec"]
    assert len(services) == 2


def test_the_api_is_port_80_of_a_service_that_is_inside_unless_asked() -> None:
    assert one(render({}), "Service")["spec"]["type"] == "ClusterIP"
    (port,) = one(render({}), "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")


def test_metrics_of_a_server_that_is_not_ready_are_found() -> None:
    assert one(render({}), "Service", "basaran-management")["spec"]["publishNotReadyAddresses"] is True


def test_a_load_balancer_can_be_for_some() -> None:
    chosen = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}
    assert one(render({"service": chosen}), "Service")["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert "mean nothing" in refusal({"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}})


# -- NetworkPolicy ---------------------------------------------------------------------------------------


def policy(values: dict, name: str = "basaran") -> Object:
    return one(render(values), "NetworkPolicy", name)["spec"]


def let_in(values: dict, port: str) -> list[Object]:
    """Peers that may reach a port; an empty peer is everybody."""
    rules = [rule for rule in policy(values)["ingress"] if {"port": port} in rule.get("ports", [])]
    return [peer for rule in rules for peer in rule.get("from", [{}])]


def test_everybody_may_call_the_api_and_only_monitoring_the_management_port() -> None:
    assert let_in({}, "http") == [{}]
    (peer,) = let_in({}, "management")
    assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


def test_the_api_can_be_for_some_and_for_the_chart_s_own_test() -> None:
    some = {"podSelector": {"matchLabels": {"app": "client"}}}
    values = {"networkPolicy": {"apiFrom": [some]}}
    first, second = let_in(values, "http")
    assert first == some
    test_pod = one(render(values), "Pod", "basaran-helm-test")["metadata"]["labels"]
    assert second["podSelector"]["matchLabels"].items() <= test_pod.items()


def test_without_peers_the_management_port_is_closed_and_not_open() -> None:
    assert let_in({"networkPolicy": {"managementFrom": []}}, "management") == []


def test_an_empty_peer_which_would_be_everybody_is_refused() -> None:
    assert "managementFrom" in refusal({"networkPolicy": {"managementFrom": [{}]}})


def test_out_goes_dns_and_https_for_the_hub() -> None:
    ports = [port for rule in policy({})["egress"] for port in rule["ports"]]
    assert [(port["port"], port["protocol"]) for port in ports] == [(53, "UDP"), (53, "TCP"), (443, "TCP")]


def test_with_local_files_nothing_goes_out() -> None:
    local = {"model": {"name": "/models/x", "localFilesOnly": True}}
    assert policy(local)["egress"] == []
    assert policy(local)["policyTypes"] == ["Ingress", "Egress"]


def test_what_goes_out_beside_local_files_finds_names() -> None:
    local = {"model": {"name": "/models/x", "localFilesOnly": True}}
    more = {"networkPolicy": {"extraEgress": [{"ports": [{"port": 4318}]}]}}
    dns, extra = policy(local | more)["egress"]
    assert [(port["port"], port["protocol"]) for port in dns["ports"]] == [(53, "UDP"), (53, "TCP")]
    assert extra == {"ports": [{"port": 4318}]}


def test_the_chart_s_own_test_reaches_the_api_and_nothing_else() -> None:
    dns, api = policy({}, "basaran-helm-test")["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert api["ports"] == [{"port": "http"}]
    (peer,) = api["to"]
    assert peer["podSelector"] == policy({})["podSelector"]


def test_the_policy_can_be_left_to_others() -> None:
    assert none(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy")


# -- ways in ---------------------------------------------------------------------------------------------


def route(**changes: object) -> Object:
    (rule,) = one(render({"httpRoute": ROUTE | changes}), "HTTPRoute")["spec"]["rules"]
    return rule


def test_a_route_cuts_no_stream() -> None:
    assert route()["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_a_gateway_that_knows_no_timeouts_is_told_none() -> None:
    assert "timeouts" not in route(timeouts=None)
    assert route(timeouts={"backendRequest": None})["timeouts"] == {"request": "0s"}


@pytest.mark.parametrize(
    ("request_", "backend"), [("1s", "2s"), ("500ms", "1s"), ("1h", "61m"), ("1h30m", "1h30m1ms")]
)
def test_a_try_that_may_outlast_its_request_is_refused(request_: str, backend: str) -> None:
    timeouts = {"request": request_, "backendRequest": backend}
    assert "is more than request" in refusal({"httpRoute": ROUTE | {"timeouts": timeouts}})


@pytest.mark.parametrize(
    ("request_", "backend"), [("0s", "2s"), ("2s", "0s"), ("90m", "1h30m"), ("1s", "1000ms"), ("0h0m", "1s")]
)
def test_a_try_may_be_as_long_as_its_request(request_: str, backend: str) -> None:
    timeouts = {"request": request_, "backendRequest": backend}
    assert route(timeouts=timeouts)["timeouts"] == timeouts


@pytest.mark.parametrize(
    "host", ["Example.com", "a_b.com", "a.*.com", "*", "-a.com", "a.com.", "a/b", "a:80"]
)
def test_a_host_that_there_cannot_be_is_refused(host: str) -> None:
    assert "hosts" in refusal({"ingress": {"enabled": True, "hosts": [host]}})
    assert "hostnames" in refusal({"httpRoute": ROUTE | {"hostnames": [host]}})


@pytest.mark.parametrize("host", ["example.com", "*.example.com", "a", "1.xn--bcher-kva.example"])
def test_a_host_may_be_a_wildcard(host: str) -> None:
    values = {"httpRoute": ROUTE | {"hostnames": [host]}, "ingress": {"enabled": True, "hosts": [host]}}
    objects = render(values)
    assert one(objects, "HTTPRoute")["spec"]["hostnames"] == [host]
    assert one(objects, "Ingress")["spec"]["rules"][0]["host"] == host


def test_a_route_leads_to_the_service_or_to_a_pool() -> None:
    assert route()["backendRefs"] == [{"kind": "Service", "name": "basaran", "port": 80}]
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "p"}
    assert route(inferencePool="p")["backendRefs"] == [pool]


def test_a_route_that_belongs_to_no_gateway_is_refused() -> None:
    assert "parentRefs" in refusal({"httpRoute": {"enabled": True}})


def ingress(values: dict) -> Object:
    return one(render({"ingress": {"enabled": True, "hosts": ["a.example.com"]}} | values), "Ingress")


def test_nginx_neither_buffers_nor_cuts_streams_and_takes_what_the_server_takes() -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = ingress({})["metadata"]["annotations"]
    assert annotations == {
        f"{prefix}proxy-buffering": "off",
        f"{prefix}proxy-read-timeout": "3600",
        f"{prefix}proxy-send-timeout": "3600",
        f"{prefix}proxy-body-size": str(Settings().server_max_body),
    }
    larger = ingress({"settings": {"SERVER_MAX_BODY": 33554432}})["metadata"]["annotations"]
    assert larger[f"{prefix}proxy-body-size"] == "33554432"


def test_annotations_of_users_win_and_nginx_s_can_be_left_out() -> None:
    name = "nginx.ingress.kubernetes.io/proxy-read-timeout"
    chosen = {"enabled": True, "hosts": ["a"], "annotations": {name: "60"}}
    assert ingress({"ingress": chosen})["metadata"]["annotations"][name] == "60"
    plain = {"enabled": True, "hosts": ["a"], "nginx": False}
    assert "annotations" not in ingress({"ingress": plain})["metadata"]


def test_an_ingress_of_no_host_is_refused() -> None:
    assert "hosts" in refusal({"ingress": {"enabled": True}})


def test_there_is_no_way_in_that_nobody_asked_for() -> None:
    objects = render({})
    assert none(objects, "Ingress")
    assert none(objects, "HTTPRoute")


# -- endpoint pickers ------------------------------------------------------------------------------------


def test_an_endpoint_picker_finds_its_label_and_metrics_of_the_names_that_it_knows() -> None:
    workload = one(render({"endpointPicker": {"enabled": True}}), "Deployment")["spec"]["template"]
    assert workload["metadata"]["labels"]["inference.networking.k8s.io/engine-type"] == "vllm"
    told = {entry["name"]: entry["value"] for entry in workload["spec"]["containers"][0]["env"]}
    assert told["MANAGEMENT_VLLM_ALIASES"] == "true"
    assert "engine-type" not in repr(one(render({}), "Deployment"))

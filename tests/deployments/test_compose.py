"""The Compose files are valid, closed where they can be, and agree with the server and with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

import basaran_ops
from basaran_ops.settings import Settings, unknown_variables

from .promtool import MONITORING

COMPOSE = MONITORING.parent / "compose"
FILES = [COMPOSE / "compose.yaml", COMPOSE / "compose.gpu.yaml"]
CPU, GPU = (yaml.safe_load(path.read_text()) for path in FILES)
SERVICES = CPU["services"]
SERVER = SERVICES["basaran-ops"]
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")
EXAMPLE = dict(
    line.split("=", 1)
    for line in (COMPOSE / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
)

services = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def rendered(value: object) -> str:
    """With the defaults in place of variables."""
    return VARIABLE.sub(lambda match: match[2] or "", str(value))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_file_is_of_the_compose_specification(path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@services
def test_an_image_has_a_full_version_and_is_never_latest(service: dict) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", rendered(service["image"]))


def test_the_servers_image_is_of_this_version() -> None:
    assert rendered(SERVER["image"]) == f"basaran-ops:{basaran_ops.__version__}"
    assert f"docker build -t basaran-ops:{basaran_ops.__version__}" in (COMPOSE / "README.md").read_text()


@services
def test_a_container_cannot_write_to_its_root_nor_gain_privileges(service: dict) -> None:
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "user", "devices"}


@services
def test_a_container_has_a_place_for_temporary_files_of_limited_size(service: dict) -> None:
    (tmpfs,) = service["tmpfs"]
    assert re.match(r"/tmp:size=\d+m", tmpfs)


@services
def test_a_container_is_asked_for_its_health_comes_back_and_limits_its_logs(service: dict) -> None:
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_only_the_api_is_open_to_other_hosts() -> None:
    opened = [
        port
        for service in SERVICES.values()
        for port in service["ports"]
        if not port.startswith("127.0.0.1:")
    ]
    assert [rendered(port) for port in opened] == ["0.0.0.0:8000:80"]


def test_streams_have_their_time_to_end() -> None:
    grace = int(SERVER["stop_grace_period"].removesuffix("s"))
    assert grace >= Settings().server_drain_timeout + 15


def test_nothing_but_caches_and_data_is_written_and_all_that_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for mount in service["volumes"]:
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert (COMPOSE / source).exists(), source
                assert mode == ["ro"], mount
            else:
                assert source in CPU["volumes"], target


def test_the_gpu_file_adds_devices_and_settings_and_takes_nothing_away() -> None:
    assert GPU["services"].keys() == {"basaran-ops"}
    assert GPU["services"]["basaran-ops"].keys() == {"environment", "deploy"}
    (device,) = GPU["services"]["basaran-ops"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize(
    "environment",
    [SERVER["environment"], {**SERVER["environment"], **GPU["services"]["basaran-ops"]["environment"]}],
    ids=["cpu", "gpu"],
)
def test_the_server_accepts_its_settings_and_knows_them_all(environment: dict) -> None:
    variables = {name: rendered(value) for name, value in environment.items()}
    settings = Settings.from_environment(variables)
    assert settings.model_cache_dir == "/models"
    assert unknown_variables(variables) == []
    libraries = {"HF_HOME", "HF_TOKEN", "TRITON_CACHE_DIR"}
    assert {name.lower() for name in variables.keys() - libraries} <= Settings.model_fields.keys()


def test_the_example_has_every_variable_with_its_default_and_no_other() -> None:
    text = "".join(path.read_text() for path in FILES)
    defaults = {match[1]: match[2] or "" for match in VARIABLE.finditer(text)}
    assert defaults == EXAMPLE


def test_grafanas_password_must_be_set() -> None:
    assert "${GRAFANA_ADMIN_PASSWORD:?" in SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert EXAMPLE["GRAFANA_ADMIN_PASSWORD"] == ""
    assert (COMPOSE / ".gitignore").read_text() == ".env\n"


def test_prometheus_scrapes_the_management_port_of_the_server() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "basaran_ops"
    port = Settings().management_port
    assert job["static_configs"][0]["targets"] == [f"basaran-ops:{port}"]
    assert [published for published in SERVER["ports"] if published.endswith(f":{port}")]
    assert f":{port}/readyz" in SERVER["healthcheck"]["test"][-1]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    grafana = COMPOSE / "grafana/provisioning"
    (source,) = yaml.safe_load((grafana / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"] is True
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape

    (provider,) = yaml.safe_load((grafana / "dashboards/basaran.yaml").read_text())["providers"]
    mounts = dict(mount.split(":")[1::-1] for mount in SERVICES["grafana"]["volumes"])
    assert mounts[provider["options"]["path"]] == "../monitoring/dashboards"
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (COMPOSE / mounts[str(home.parent)] / home.name).is_file()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_readiness(status: int, healthy: bool) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    _, python, *arguments = SERVER["healthcheck"]["test"]
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        code = arguments[1].replace(":9000/", f":{server.server_port}/")
        result = subprocess.run([sys.executable, arguments[0], code], capture_output=True, check=False)
        thread.join()
    assert (result.returncode == 0) is healthy
    assert asked == ["/readyz"]


def test_the_readme_tells_the_ports() -> None:
    told = dict(re.findall(r"^\| (\d+) \(`(\w+)`\)", (COMPOSE / "README.md").read_text(), re.MULTILINE))
    assert {variable: port for port, variable in told.items()} == {
        name: value for name, value in EXAMPLE.items() if "PORT" in name
    }

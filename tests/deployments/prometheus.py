"""A real Prometheus with our configuration, which has no time to lose."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from ..running_server import free_port
from .promtool import MONITORING, RULES, program

SECONDS = 30


class Prometheus:
    def __init__(self, port: int) -> None:
        # One for all questions: making a client takes longer than the answer.
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1")

    def get(self, path: str, **parameters: str) -> dict:
        answer = self._http.get(f"/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def close(self) -> None:
        self._http.close()

    def ask(self, query: str) -> list[dict]:
        return self.get("query", query=query)["result"]

    def wait_for(self, query: str) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if self.ask(query):
                    return
            except (httpx.TransportError, ValueError):
                pass  # not up yet
            time.sleep(0.1)
        pytest.fail(f"Prometheus has no answer to {query} after {SECONDS} s")


@contextmanager
def running_prometheus(
    directory: Path, ports: Sequence[int], cluster_ports: Sequence[int] = ()
) -> Iterator[Prometheus]:
    """It scrapes these management ports each second, and what tells of the cluster."""
    port = free_port()
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(impatient(ports, cluster_ports)))
    arguments = {
        "config.file": config,
        "storage.tsdb.path": directory / "data",
        "web.listen-address": f"127.0.0.1:{port}",
        "log.level": "error",
    }
    process = subprocess.Popen(
        [program("prometheus"), *(f"--{name}={value}" for name, value in arguments.items())]
    )
    prometheus = Prometheus(port)
    try:
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait()


def impatient(ports: Sequence[int], cluster_ports: Sequence[int]) -> dict:
    """The shipped configuration, with these servers in place of the container and no time to lose."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"]
    target["targets"] = [f"127.0.0.1:{port}" for port in ports]
    # Both have one address; the pods of the real ones differ.
    (relabel,) = job["relabel_configs"]
    relabel["regex"] = "(.*)"
    config["scrape_configs"] += [
        # Somebody else's, and down: there is nothing on this port.
        {"job_name": "another", "static_configs": [{"targets": ["127.0.0.1:1"]}]},
        {
            "job_name": "cluster",
            "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in cluster_ports]}],
        },
    ]
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    return config

"""Containers as operators should run them: Docker where its daemon answers, else Podman."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import basaran_ops

VARIANT = os.environ.get("VARIANT") or "cpu"
_SUFFIX = "" if VARIANT == "cpu" else f"-{VARIANT}"
IMAGE = os.environ.get("IMAGE") or f"basaran-ops:{basaran_ops.__version__}{_SUFFIX}"
"""The image under test."""

MEMORY = 3 * 2**30
"""Bytes that a container may use."""

READY_SECONDS = 180.0

LOCKED = (
    *("--read-only", "--tmpfs", "/tmp:size=64m,mode=1777"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--memory", str(MEMORY), "--memory-swap", str(MEMORY)),
    # As Docker does by itself: port 80 without being root.
    *("--sysctl", "net.ipv4.ip_unprivileged_port_start=0"),
)


def engine() -> str:
    """docker or podman."""
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0
    ):
        return "docker"
    return "podman"


ENGINE = engine()


def ask(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The container engine's answer. Fails with what it said, if it fails."""
    result = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, f"{ENGINE} {' '.join(arguments)}:\n{result.stderr}"
    return result


def inspect(name: str) -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    (facts,) = json.loads(ask("inspect", name).stdout)
    return facts


def health_check(name: str) -> list[str]:
    """The HEALTHCHECK of a container or an image: CMD and its words."""
    facts = inspect(name)
    # Podman keeps an image's beside its configuration.
    declared = facts["Config"].get("Healthcheck") or facts["Healthcheck"]
    words: list[str] = declared["Test"]
    return words


def limits() -> list[str]:
    """Podman raises limits by itself, which a machine may forbid even to root."""
    if ENGINE == "docker":
        return []
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    # crun takes no mixture of cgroups of both versions.
    return ["--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=4096:4096"]


def runtime() -> list[str]:
    return ["--runtime", "runc"] if ENGINE == "podman" and shutil.which("runc") else []


def python(code: str, *options: str, image: str = IMAGE) -> str:
    """What a program prints in a locked container without a network."""
    command = [*runtime(), "run", "--rm", *LOCKED[:-2], "--network", "none", *limits(), *options]
    return ask(*command, "--entrypoint", "python", image, "-c", code).stdout


class Container:
    """A server in a container, reached through published ports."""

    def __init__(self, *options: str, image: str = IMAGE, locked: bool = True, **settings: str) -> None:
        environment = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        published = (
            [] if "host" in options else ["--publish", "127.0.0.1::80", "--publish", "127.0.0.1::9000"]
        )
        locks = LOCKED if locked else LOCKED[-2:]
        started = time.monotonic()
        self.id = ask(
            *runtime(), "run", "--detach", *(locks if published else locks[:-2]), *limits(), *published,
            *environment, *options, image,
        ).stdout.strip()  # fmt: skip
        self.started = started
        self.settings = settings
        self.url = self._url("80", settings.get("PORT", "80"), published)
        self.management_url = self._url("9000", settings.get("MANAGEMENT_PORT", "9000"), published)
        # Connections that are kept would look like leaks of the test that opened them.
        none_kept = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, timeout=120, limits=none_kept)

    def _url(self, port: str, host_port: str, published: list[str]) -> str:
        if not published:
            return f"http://127.0.0.1:{host_port}"
        return f"http://{ask('port', self.id, f'{port}/tcp').stdout.split()[0]}"

    def wait_ready(self) -> float:
        """Seconds from the start until /readyz says 200."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.management_url}/readyz").status_code == 200:
                    return time.monotonic() - self.started
            except httpx.TransportError:
                assert self.running(), self.logs()
            time.sleep(0.1)
        raise AssertionError(f"not ready after {READY_SECONDS} s:\n{self.logs()[-4000:]}")

    def complete(self, **fields: object) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": "The capital of France is"} | fields)

    def python(self, code: str) -> str:
        """What a program prints beside the server."""
        return ask("exec", self.id, "python", "-c", code).stdout

    def healthy(self) -> bool:
        """Whether the image's HEALTHCHECK passes now, run as its engine would."""
        kind, *command = health_check(self.id)
        assert kind == "CMD"
        return ask("exec", self.id, *command, check=False).returncode == 0

    def running(self) -> bool:
        running: bool = inspect(self.id)["State"]["Running"]
        return running

    def processes(self) -> list[dict[str, str]]:
        """Of every process in the container the fields of its /proc/*/status, and its Command."""
        return json.loads(self.python(PROCESSES))

    def logs(self) -> str:
        result = ask("logs", self.id)
        return result.stdout + result.stderr

    def remove(self) -> None:
        self.http.close()
        ask("rm", "--force", "--time", "0", self.id) if ENGINE == "podman" else ask("rm", "--force", self.id)


PROCESSES = """
import json, os
from pathlib import Path
found = []
for path in Path("/proc").glob("[0-9]*"):
    if int(path.name) == os.getpid():
        continue
    try:
        lines = (path / "status").read_text().splitlines()
        command = (path / "cmdline").read_text().replace("\\0", " ")
    except FileNotFoundError:
        continue
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    found.append(fields | {"Command": command})
print(json.dumps(found))
"""


@contextmanager
def container(*options: str, image: str = IMAGE, locked: bool = True, **settings: str) -> Iterator[Container]:
    """A server that may still be loading, removed at the end."""
    running = Container(*options, image=image, locked=locked, **settings)
    try:
        yield running
    finally:
        running.remove()


def readable_copy(model: Path, directory: Path) -> Path:
    """A model as anybody may read it: weights that a library saved are for their owner alone."""
    copy = directory / "model"
    shutil.copytree(model, copy)
    for path in (directory, copy, *copy.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy

"""What a kubelet does with a rendered pod, as far as one machine without containers can.

Run as rendered are commands, variables, probes, preStop and times. Of a container's file system there is what
is mounted: each mount is a directory here, and variables that name a path in it are told the directory's.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from .charts import Object, one


class Pod:
    """The pod of a rendered Deployment; its volumes are under a directory."""

    def __init__(self, objects: list[Object], directory: Path, secrets: dict[str, dict[str, str]]) -> None:
        """`secrets` are those of the namespace that the chart does not make."""
        self.objects = objects
        self.spec = one(objects, "Deployment")["spec"]["template"]["spec"]
        self._directory = directory
        self._secrets = secrets | {
            o["metadata"]["name"]: {key: base64.b64decode(v).decode() for key, v in o["data"].items()}
            for o in objects
            if o["kind"] == "Secret"
        }

    def volume(self, name: str) -> Path:
        """The directory that stands for a volume."""
        path = self._directory / name
        if not path.exists():
            path.mkdir(parents=True)
            (described,) = [volume for volume in self.spec["volumes"] if volume["name"] == name]
            for file, text in self._files(described).items():
                (path / file).write_text(text)
        return path

    def _files(self, volume: Object) -> dict[str, str]:
        if "secret" in volume:
            data = self._secrets[volume["secret"]["secretName"]]
            return {item["path"]: data[item["key"]] for item in volume["secret"]["items"]}
        if "configMap" in volume:
            data = one(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
            assert isinstance(data, dict)
            return data
        return {}

    def environment(self, container: Object) -> dict[str, str]:
        """The variables of a container, and the image's PATH."""
        mounts = {mount["mountPath"]: self.volume(mount["name"]) for mount in container["volumeMounts"]}
        values = {entry["name"]: self._value(entry) for entry in container["env"]}
        mapped = {name: _mapped(value, mounts) for name, value in values.items()}
        return mapped | {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"}

    def _value(self, entry: Object) -> str:
        if "value" in entry:
            return str(entry["value"])
        reference = entry["valueFrom"]["secretKeyRef"]
        return self._secrets[reference["name"]][reference["key"]]


def _mapped(value: str, mounts: dict[str, Path]) -> str:
    for path, directory in mounts.items():
        if value == path or value.startswith(path + "/"):
            return str(directory) + value.removeprefix(path)
    return value


def run(command: list[str], environ: dict[str, str], limit: float = 240) -> subprocess.CompletedProcess[str]:
    """A container that ends by itself."""
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=limit)


@dataclass
class Probe:
    """One of a container's probes, played until stopped, and what came of it."""

    url: str
    described: Object
    answers: list[bool] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether so many in a row failed that the kubelet would act."""
        last = self.answers[-self.described["failureThreshold"] :]
        return len(last) == self.described["failureThreshold"] and not any(last)

    def ask(self) -> bool:
        try:
            status = httpx.get(self.url, timeout=self.described["timeoutSeconds"]).status_code
        except httpx.TransportError:
            status = 0
        # Any status from 200 to 399 is success for a kubelet.
        self.answers.append(200 <= status < 400)
        return self.answers[-1]


class Container:
    """A started container: probed, and ended as the kubelet ends it."""

    def __init__(self, pod: Pod, described: Object, log: Path) -> None:
        self.described = described
        self.log = log
        self._grace = pod.spec["terminationGracePeriodSeconds"]
        self._ports = {port["name"]: port["containerPort"] for port in described["ports"]}
        self.url = f"http://127.0.0.1:{self._ports['http']}"
        self.startup, self.readiness, self.liveness = (
            self._probe(described[name]) for name in ("startupProbe", "readinessProbe", "livenessProbe")
        )
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._play, args=(probe,)) for probe in (self.readiness, self.liveness)
        ]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                described["command"], env=pod.environment(described), stdout=output, stderr=output
            )

    def _probe(self, described: Object) -> Probe:
        return Probe(self._action(described["httpGet"]), described)

    def _action(self, get: Object) -> str:
        return f"http://127.0.0.1:{self._ports[get['port']]}{get['path']}"

    def start(self) -> None:
        """Play the startup probe, and the others once it has succeeded. Fails if it never does."""
        while not self.startup.ask():
            assert self.process.poll() is None, self.log.read_text()
            assert not self.startup.failed, f"it would be restarted:\n{self.log.read_text()}"
            time.sleep(self.startup.described["periodSeconds"])
        for thread in self._threads:
            thread.start()

    def _play(self, probe: Probe) -> None:
        while not self._stopped.is_set():
            due = time.monotonic() + probe.described["periodSeconds"]
            probe.ask()
            self._stopped.wait(max(0.0, due - time.monotonic()))

    def pre_stop(self) -> float:
        """How many seconds the hook took. The grace period has begun."""
        self._deadline = time.monotonic() + self._grace
        started = time.monotonic()
        # The kubelet waits for the hook as long as the grace period lasts.
        httpx.get(self._action(self.described["lifecycle"]["preStop"]["httpGet"]), timeout=self._grace)
        return time.monotonic() - started

    def end(self) -> int:
        """SIGTERM after the hook; the exit status. Fails if it would have been killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self._deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it would be killed:\n{self.log.read_text()}") from None

    @property
    def left(self) -> float:
        """Seconds of the grace period that are left."""
        return self._deadline - time.monotonic()

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        if self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self.process.pid).children(recursive=True):
                    process.kill()
            self.process.kill()
            self.process.wait()


@contextmanager
def running(pod: Pod, log: Path) -> Iterator[Container]:
    """The pod's server, which may still be loading."""
    (described,) = [c for c in pod.spec["containers"] if c["name"] == "server"]
    container = Container(pod, described, log)
    try:
        yield container
    finally:
        container.close()

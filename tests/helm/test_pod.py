"""The rendered pod, run: the real server by the rendered command, with the kubelet's part played."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from basaran_ops.checkpoint import resolve
from basaran_ops.settings import Settings

from ..fake_hub import FakeHub, fake_hub
from ..running_server import free_port
from ..tiny_models import save_tiny
from .charts import one, render
from .kubelet import Pod, run, running

SECRETS = {"clients": {"keys.txt": "first-key\nsecond-key\n"}, "hub": {"token": "hf_the-token"}}
LIFECYCLE: dict[str, Any] = {
    "startup": {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 120},
    "readiness": {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 2},
    "liveness": {"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 5},
    "preStopSeconds": 3,
    "drainSeconds": 90,
    "exitSeconds": 10,
}


def values(**changes: object) -> dict[str, Any]:
    """A tiny model in a claim, with no time to lose."""
    return {
        "model": {"name": "/models/tiny", "servedName": "org/tiny", "localFilesOnly": True},
        "apiKeys": {"existingSecret": "clients", "existingSecretKey": "keys.txt"},
        "cache": {"existingClaim": "models"},
        "engine": {"slots": 4, "threads": 1},
        "server": {"queueLimit": 32},
        "settings": {"MODEL_DTYPE": "float32"},
        "ports": {"http": free_port(), "management": free_port()},
        "lifecycle": LIFECYCLE,
    } | changes


def pod_of(chosen: dict[str, Any], directory: Path, model: Path | None = None) -> Pod:
    pod = Pod(render(chosen), directory / "volumes", SECRETS)
    if model is not None:
        shutil.copytree(model, pod.volume("models") / "tiny")
    return pod


class Stream:
    """A completion that is read to its end."""

    def __init__(self, url: str, max_tokens: int) -> None:
        self.lines: list[str] = []
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(url, max_tokens))
        self._thread.start()

    def _read(self, url: str, max_tokens: int) -> None:
        body = {"prompt": "once", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        headers = {"Authorization": "Bearer second-key"}
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=90) as r:
                self.lines += [line for line in r.iter_lines() if line.startswith("data: ")]
        except Exception as error:
            self.failure = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> str:
        """How it ended: "length", or the code of the error before [DONE]."""
        self._thread.join()
        assert self.failure is None, self.failure
        assert self.lines[-1] == "data: [DONE]"
        last = json.loads(self.lines[-2].removeprefix("data: "))
        return last["error"]["code"] if "error" in last else last["choices"][0]["finish_reason"]


def ask(url: str, key: str = "second-key") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(
        f"{url}/v1/completions", json={"prompt": "once", "max_tokens": 2}, headers=headers, timeout=60
    )


def health(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/health", timeout=60).json()


def admitted(url: str, count: int, max_tokens: int) -> list[Stream]:
    """So many streams, all of them admitted: some run, some wait, and a few may have ended."""
    streams = [Stream(url, max_tokens) for _ in range(count)]
    deadline = time.monotonic() + 60
    while sum(not stream.running for stream in streams) + health(url)["outstanding"] < count:
        assert time.monotonic() < deadline, "the streams did not begin"
        time.sleep(0.01)
    return streams


@pytest.fixture(scope="module")
def roomy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can write for longer than a pod has to end."""
    return save_tiny(tmp_path_factory.mktemp("roomy") / "model", eos=None, max_position_embeddings=8192)


def test_a_pod_starts_serves_drains_and_ends_within_its_grace_period(
    roomy_path: Path, tmp_path: Path
) -> None:
    pod = pod_of(values(), tmp_path, roomy_path)
    assert pod.spec["terminationGracePeriodSeconds"] == 3 + 90 + 10
    with running(pod, tmp_path / "log") as container:
        container.start()
        assert container.startup.answers.count(True) == 1
        assert len(container.startup.answers) > 1, "it was ready at once"
        completion_test(pod, container.url, tmp_path)
        # A key that is added to the Secret counts without a restart.
        assert ask(container.url, "third-key").status_code == 401
        (pod.volume("api-keys") / "api-keys").write_text("second-key\nthird-key\n")
        assert ask(container.url, "third-key").status_code == 200

        # More than run at a time, and long enough to outlast the hook.
        streams = admitted(container.url, 32, max_tokens=1200)
        assert container.pre_stop() >= 3
        # What the chart promises of preStopSeconds: whoever goes by readiness sends nothing more.
        assert container.readiness.failed
        assert health(container.url)["status"] == "draining"
        assert ask(container.url).status_code == 503
        assert any(stream.running for stream in streams), "nothing was left to finish after the hook"
        assert container.end() == 0
        assert [stream.end() for stream in streams] == ["length"] * len(streams)
        assert container.left > 0
        assert not container.liveness.failed
        assert True not in container.readiness.answers[-2:]


def test_what_outlasts_the_drain_ends_with_an_error_and_in_time(roomy_path: Path, tmp_path: Path) -> None:
    short = LIFECYCLE | {"preStopSeconds": 2, "drainSeconds": 1}
    pod = pod_of(values(lifecycle=short), tmp_path, roomy_path)
    with running(pod, tmp_path / "log") as container:
        container.start()
        streams = admitted(container.url, 32, max_tokens=8000)
        container.pre_stop()
        assert container.end() == 0
        ends = {stream.end() for stream in streams}
        assert "shutting_down" in ends
        assert ends <= {"shutting_down", "length"}
        assert container.left > 0


def completion_test(pod: Pod, url: str, tmp_path: Path) -> None:
    """Run the pod of `helm test`, which must pass, and fail without a right key."""
    spec = one(pod.objects, "Pod", "basaran-helm-test")["spec"]
    (container,) = spec["containers"]
    environ = pod.environment(container)
    assert environ["API"] == "http://basaran.prod.svc:80"
    passed = run(container["command"], environ | {"API": url})
    assert passed.returncode == 0, passed.stderr
    assert '"completion_tokens": 8' in passed.stdout
    strange = tmp_path / "strange-keys"
    strange.write_text("no-such-key")
    failed = run(container["command"], environ | {"API": url, "API_KEYS_FILE": str(strange)})
    assert failed.returncode != 0
    assert "401" in failed.stderr


# -- the init container ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    model = save_tiny(tmp_path / "hub")
    with fake_hub(FakeHub(repos={"org/tiny": model}, token="hf_the-token", status=401)) as hub:
        yield hub


def downloading(hub: FakeHub, **download: object) -> dict[str, Any]:
    return values(
        model={"name": "org/tiny", "download": {"enabled": True} | download},
        huggingFace={"existingSecret": "hub"},
        extraEnv=[{"name": "HF_ENDPOINT", "value": hub.url}],
    )


def test_the_init_container_fetches_what_the_server_then_has(hub: FakeHub, tmp_path: Path) -> None:
    pod = pod_of(downloading(hub), tmp_path)
    (init,) = pod.spec["initContainers"]
    fetched = run(init["command"], pod.environment(init))
    assert fetched.returncode == 0, fetched.stderr
    assert "model.safetensors" in hub.downloads()

    (server,) = pod.spec["containers"]
    environ = pod.environment(server)
    assert environ["MODEL_LOCAL_FILES_ONLY"] == "true"
    assert "HF_TOKEN" not in environ, "the server has no use for it"
    found = resolve(Settings.from_environment(environ), print)
    assert (found.path / "model.safetensors").is_file()
    assert found.path.is_relative_to(pod.volume("models"))


def test_the_init_container_says_why_there_is_no_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "another"
    pod = pod_of(downloading(hub), tmp_path)
    (init,) = pod.spec["initContainers"]
    failed = run(init["command"], pod.environment(init))
    assert failed.returncode == 1
    assert "HF_TOKEN" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_download_that_hangs_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_at = 1000
    pod = pod_of(downloading(hub, timeoutSeconds=4), tmp_path)
    (init,) = pod.spec["initContainers"]
    started = time.monotonic()
    assert run(init["command"], pod.environment(init) | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"}).returncode == -14
    assert time.monotonic() - started > 4
    assert hub.stalled.is_set()


def test_no_variable_of_this_process_reaches_the_pod(tmp_path: Path) -> None:
    pod = pod_of(values(), tmp_path)
    assert not pod.environment(pod.spec["containers"][0]).keys() & (os.environ.keys() - {"PATH", "HOME"})

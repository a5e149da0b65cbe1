"""The built image, run as operators should run it: `make image-test`.

Not among the tests of `make test`: it takes an image, which takes minutes and a container engine.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import basaran_ops

from ..fake_hub import FakeHub, fake_hub
from ..running_server import free_port
from ..tiny_models import save_tiny
from .containers import (
    IMAGE,
    MEMORY,
    VARIANT,
    Container,
    ask,
    container,
    inspect,
    limits,
    python,
    readable_copy,
    runtime,
)

MOST_BYTES = 1_500_000_000
"""Of a CPU image's layers, unpacked."""

STOP_SECONDS = 10
"""From SIGTERM to the end, for a server that has nothing to do."""


@pytest.fixture(scope="module")
def model(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, as a directory to mount."""
    return readable_copy(default_model_path, tmp_path_factory.mktemp("mounted"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model that is loaded at once."""
    return readable_copy(save_tiny(tmp_path / "tiny"), tmp_path / "mounted")


def serving(model: Path) -> tuple[str, ...]:
    # Threads of an engine wait for each other where something else keeps the cores busy.
    options = {"MODEL": "/mnt/model", "ENGINE_THREADS": "1"}
    environment = [word for name, value in options.items() for word in ("--env", f"{name}={value}")]
    return ("--volume", f"{model}:/mnt/model:ro", *environment)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Container]:
    """A locked server that has loaded the default model."""
    with container(*serving(model)) as server:
        print(f"ready after {server.wait_ready():.1f} s")
        yield server


def layers() -> list[tuple[int, str]]:
    """Bytes and instruction of every layer, the newest first."""
    lines = ask(
        "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", "--human=false", IMAGE
    ).stdout
    pairs = (line.split("\t", 1) for line in lines.splitlines())
    return [(in_bytes(size), instruction) for size, instruction in pairs]


def in_bytes(size: str) -> int:
    number, unit = re.fullmatch(r"([\d.e+]+) ?([kMG]?B)?", size).groups()  # type: ignore[union-attr]
    return round(float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}.get(unit, 1))


def test_the_image_is_small() -> None:
    sizes = layers()
    for size, instruction in reversed(sizes):
        if size:
            print(f"{size / 1e6:8.1f} MB  {instruction[:100]}")
    # Podman tells sizes in three digits.
    total = sum(size for size, _ in sizes)
    print(f"{total / 1e6:8.1f} MB  in all")
    assert total > 0
    assert total < MOST_BYTES or VARIANT != "cpu"


def test_the_image_says_what_it_is_and_how_it_is_run() -> None:
    config = inspect(IMAGE)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["python", "-m", "basaran_ops"]
    assert not config.get("Cmd")
    assert not config.get("Volumes")
    assert config["ExposedPorts"].keys() == {"80/tcp", "9000/tcp"}
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert "PORT=80" in config["Env"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["version"] == basaran_ops.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-modified)?", labels["revision"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])


def test_its_version_is_told() -> None:
    result = ask(*runtime(), "run", "--rm", "--network", "none", *limits(), IMAGE, "--version")
    assert result.stdout.strip() == f"basaran_ops {basaran_ops.__version__}"


def test_there_is_nothing_to_compile_with_and_nothing_left_of_the_build() -> None:
    code = """
import os, shutil
tools = ["gcc", "cc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "nvcc", "git", "curl", "wget"]
print([tool for tool in tools if shutil.which(tool)])
left = ["/root/.cache", "/build", "/wheels", "/etc/pip.conf", "/run/secrets", "/var/cache/apt/archives/lock"]
print([path for path in left if os.path.exists(path)])
print(os.listdir("/models"), os.listdir("/var/lib/apt/lists") if os.path.isdir("/var/lib/apt/lists") else [])
"""
    tools, left, lists = python(code, "--user", "0").splitlines()
    assert tools == "[]"
    assert left == "[]"
    assert lists == "[] []"


def test_nobody_becomes_root_by_a_program_in_it_nor_writes_to_one() -> None:
    code = """
import os, stat
for top, directories, files in os.walk("/"):
    if top == "/":
        directories[:] = [name for name in directories if name not in ("proc", "sys", "dev", "tmp", "models")]
    for name in files + directories:
        status = os.lstat(os.path.join(top, name))
        if stat.S_ISLNK(status.st_mode):
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            print("privileged", top, name)
        if status.st_uid == 10001 or status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            print("writable", top, name)
"""
    assert python(code, "--user", "0") == ""


def test_all_modules_come_compiled_and_licences_stay() -> None:
    code = """
import os, sys
import bitsandbytes, peft, torch, transformers, basaran_ops.server.app, basaran_ops.engine.loader
specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
cached = [spec.cached for spec in specs if isinstance(getattr(spec, "cached", None), str)]
print(len(cached) > 2000, [path for path in cached if not os.path.exists(path)])
from importlib.metadata import distributions
for distribution in distributions():
    named = distribution.metadata.get_all("License-File") or []
    files = {str(file).split(".dist-info/")[-1].removeprefix("licenses/") for file in distribution.files or []
             if file.locate().exists()}
    print(distribution.name, sorted(set(named) - files))
"""
    compiled, *licences = python(code).splitlines()
    assert compiled == "True []"
    assert len(licences) > 50
    assert [line for line in licences if not line.endswith(" []")] == []


def test_the_compiled_kernels_work_without_a_compiler() -> None:
    assert (
        python("import torch; from basaran_ops.engine import kernels; print(kernels.available)").strip()
        == "True"
    )


def test_it_runs_without_rights_on_a_root_that_it_cannot_write(server: Container) -> None:
    processes = server.processes()
    # The arbiter is the first process: nothing stands between it and signals.
    assert {process["Pid"]: process["PPid"] for process in processes}["1"] == "0"
    assert len(processes) == 3
    for process in processes:
        assert set(process["Uid"].split()) == set(process["Gid"].split()) == {"10001"}
        assert int(process["CapEff"], 16) == int(process["CapPrm"], 16) == int(process["CapBnd"], 16) == 0
        assert process["NoNewPrivs"] == "1"
    code = """
import errno
for path in "/new", "/opt/basaran_ops/new", "/models/new", "/etc/passwd", "/tmp/new", "/dev/shm/new":
    try:
        open(path, "a").close()
        print(path)
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EACCES), error
"""
    assert server.python(code).split() == ["/tmp/new", "/dev/shm/new"]


def test_it_answers_on_port_80_and_is_healthy(server: Container) -> None:
    answer = server.complete(max_tokens=8, temperature=0).json()
    assert answer["choices"][0]["text"].startswith(" Paris")
    assert server.healthy()


def test_a_proxy_is_not_asked_for_the_health(model: Path) -> None:
    with container(
        *serving(model), http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9"
    ) as server:
        assert not server.healthy()
        server.wait_ready()
        assert server.healthy()


def test_the_memory_limit_holds_and_is_kept(server: Container) -> None:
    assert server.complete(max_tokens=32, n=8, temperature=1).status_code == 200
    code = """
from pathlib import Path
two = "memory.max", "memory.peak"
one = "memory/memory.limit_in_bytes", "memory/memory.max_usage_in_bytes"
for names in one, two:
    paths = [Path("/sys/fs/cgroup", name) for name in names]
    if all(path.exists() for path in paths):
        print(*(path.read_text().strip() for path in paths))
"""
    limit, peak = map(int, server.python(code).split())
    print(f"peak {peak / 2**20:.0f} MiB, files in memory included")
    assert limit == MEMORY
    assert peak < 0.8 * MEMORY


def test_processes_that_end_leave_nothing_behind(server: Container) -> None:
    """The first process of a container inherits all orphans, and must take their leave."""
    for victim in ("basaran_ops.engine_process", "gunicorn"):
        before = [process for process in server.processes() if process["Pid"] != "1"]
        pid = next(process["Pid"] for process in before if victim in process["Command"])
        server.python(f"import os; os.kill({pid}, 9)")
        wait_until(lambda pid=pid: pid not in {process["Pid"] for process in server.processes()})
        server.wait_ready()
        processes = server.processes()
        assert len(processes) == 3, processes
        assert [process for process in processes if process["State"].startswith("Z")] == []
    assert server.complete(max_tokens=1).status_code == 200


def test_sigterm_lets_a_stream_finish_and_leaves_nothing(model: Path) -> None:
    with container(*serving(model)) as server:
        server.wait_ready()
        family = psutil.Process(inspect(server.id)["State"]["Pid"])
        family_and_children = [family, *family.children(recursive=True)]
        assert len(family_and_children) == 3
        fields = {"prompt": "Once upon a time", "max_tokens": 100, "ignore_eos": True, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=fields) as response:
            lines = response.iter_lines()
            first = next(lines)
            began = time.monotonic()
            stop = threading.Thread(target=ask, args=("stop", "--time", "100", server.id))
            stop.start()
            rest = [line for line in lines if line]
        finished = time.monotonic() - began
        stop.join()
        stopped = time.monotonic() - began
        assert first.startswith("data: {")
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        print(
            f"the stream ended {finished:.1f} s after SIGTERM, the container {stopped - finished:.1f} s later"
        )
        assert finished > 0.5, "the stream was over before the signal could cut it"
        assert stopped - finished < STOP_SECONDS
        state = inspect(server.id)["State"]
        assert state["ExitCode"] == 0
        assert not state["OOMKilled"]
        _, alive = psutil.wait_procs(family_and_children, timeout=1)
        assert alive == []


def test_an_idle_server_stops_at_once(server: Container) -> None:
    began = time.monotonic()
    ask("stop", "--time", "100", server.id)
    seconds = time.monotonic() - began
    print(f"stopped in {seconds:.1f} s")
    assert inspect(server.id)["State"]["ExitCode"] == 0
    assert seconds < STOP_SECONDS
    ask("start", server.id)
    server.wait_ready()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.repos["user/repo"] = save_tiny(tmp_path / "tiny")
        yield hub


def test_the_quick_start_fetches_a_model_of_the_hub_without_any_flag(hub: FakeHub) -> None:
    """`docker run -e MODEL=user/repo IMAGE`: only the network is the host's, as the hub is on it."""
    ports = {"PORT": str(free_port()), "MANAGEMENT_PORT": str(free_port())}
    with container(
        "--network", "host", locked=False, MODEL="user/repo", HF_ENDPOINT=hub.url, ENGINE_THREADS="1", **ports
    ) as server:
        server.wait_ready()
        assert server.complete(max_tokens=2).json()["model"] == "user/repo"
        assert "model.safetensors" in hub.downloads()
        assert "models--user--repo" in server.python("import os; print(os.listdir('/models'))")
        assert server.healthy()


def wait_until(holds: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)

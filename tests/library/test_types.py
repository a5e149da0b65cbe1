"""The library's types are there for its users: in the package, and strict enough to find a mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
from collections.abc import Iterator
from typing import assert_type

import torch

from basaran_ops import ChoiceDict, ChoiceStream, LibraryModel, load_model, reduce_choice


def ask(model: LibraryModel, prompt: str) -> Iterator[str]:
    for choice in model(prompt, max_tokens=8, temperature=0, seed=1, stop=["\\n"], logit_bias={5: 1.0}):
        yield choice["text"]


with load_model("user/repo", engine_slots=4) as model:
    assert_type(model, LibraryModel)
    assert_type(model("once", logprobs=2), ChoiceStream)
    assert_type(model.chat([{"role": "user", "content": "x"}]), ChoiceStream)
    whole: ChoiceDict = reduce_choice(model(torch.tensor([1, 2])))
    if whole["logprobs"] is not None:
        assert_type(whole["logprobs"]["token_logprobs"], list[float | None])
    model([1, 2])
    model(["once", "twice"])
    # Of no use unless each of these is found to be wrong: strict mode reports an ignore that is not needed.
    model("once", temprature=1)  # type: ignore[call-arg]
    model("once", top_k="all")  # type: ignore[arg-type]
    model(5)  # type: ignore[arg-type]
    whole["txt"]  # type: ignore[typeddict-item]
"""


def test_a_typed_program_passes_strictly_and_its_mistakes_are_found(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--strict", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # Of the package itself `make lint` tells; a user's mypy is silent about what is installed.
    assert "checked 1 source file" in checked.stdout or "in 1 source file" in checked.stdout, checked.stderr
    assert [line for line in checked.stdout.splitlines() if program.name in line] == []


def test_the_package_tells_that_it_is_typed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "basaran_ops", source / "basaran_ops", ignore=shutil.ignore_patterns("__pycache__")
    )
    # What a wheel holds, but for what is compiled.
    program = "import setuptools; setuptools.setup()"
    built = tmp_path / "built"
    command = [sys.executable, "-W", "ignore", "-c", program, "--quiet", "build_py", "--build-lib", built]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    assert (built / "basaran_ops" / "py.typed").is_file()
    assert [path.name for path in built.iterdir()] == ["basaran_ops"]

"""Programs: Basaran's with one import changed, and scripts that end in every way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from basaran_ops import LibraryModel
from basaran_ops.model import StreamModel, load_model

from ..tiny_models import save_tiny

SECONDS = 60


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where "user/repo" is a model."""
    directory = tmp_path_factory.mktemp("programs")
    save_tiny(directory / "user" / "repo", eos=None, max_position_embeddings=8192)
    return directory


def run(directory: Path, program: str) -> subprocess.CompletedProcess[str]:
    """A script without a main guard, run to its end."""
    (directory / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


README_PROGRAM = """
from basaran_ops.model import load_model

model = load_model("user/repo")

for choice in model("once upon a time"):
    print(choice)
"""
"""As Basaran's README has it, but for the import; it never closes its model."""


def test_the_program_of_basarans_readme_runs_with_its_import_changed(directory: Path) -> None:
    done = run(directory, README_PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    pieces = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert {tuple(piece) for piece in pieces} == {("text", "index", "logprobs", "finish_reason")}
    assert pieces[-1]["finish_reason"] == "length"


BUSY_EXIT = r"""
import sys
import threading
from basaran_ops import load_model

model = load_model("user/repo", engine_slots=2)
other = load_model("user/repo", engine_slots=2)
half = model("once upon a time", max_tokens=8000)
next(half)
never = other("once upon a time", max_tokens=8000)

def read():
    try:
        for _ in other("once upon a time", max_tokens=8000):
            pass
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__} {error}\n")

readers = [threading.Thread(target=read, daemon=True) for _ in range(4)]
for reader in readers:
    reader.start()
"""


@pytest.mark.parametrize(
    ("ending", "status", "last"),
    [("raise SystemExit(3)", 3, ""), ("raise LookupError('x')", 1, "LookupError: x")],
    ids=["exit", "error"],
)
def test_a_script_that_ends_while_its_models_generate_ends_at_once(
    directory: Path, ending: str, status: int, last: str
) -> None:
    done = run(directory, BUSY_EXIT + ending)
    assert done.returncode == status, done.stderr
    assert done.stderr.strip().endswith(last)
    assert "Fatal" not in done.stderr
    assert set(done.stdout.splitlines()) <= {"ModelClosed the model was closed"}


CALLED_AS_BASARANS_OWN_TESTS_DO = ["llama", "t5"]


@pytest.fixture(scope="module", params=CALLED_AS_BASARANS_OWN_TESTS_DO)
def model(request: pytest.FixtureRequest, tiny_path: Path, numbers_path: Path) -> Iterator[LibraryModel]:
    path = tiny_path if request.param == "llama" else numbers_path
    with load_model(str(path), "", "") as model:
        yield model


def test_what_load_model_returns_has_basarans_name(model: LibraryModel) -> None:
    assert isinstance(model, StreamModel)
    assert model.device == "cpu"


def test_two_sampled_choices_with_echo_and_logprobs(model: LibraryModel) -> None:
    text, reasons = ["", ""], [None, None]
    for choice in model(
        prompt="7",
        min_tokens=10,
        max_tokens=16,
        temperature=0.95,
        top_p=0.95,
        n=2,
        logprobs=2,
        echo=True,
    ):
        text[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
        assert choice["logprobs"] is not None
        assert choice["logprobs"].keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert all(told.startswith("7") for told in text)
    assert None not in reasons


def test_three_greedy_choices_after_a_tensor_of_token_ids(model: LibraryModel) -> None:
    text = ["", "", ""]
    for choice in model(prompt=model.tokenize("7"), min_tokens=10, max_tokens=16, temperature=0, n=3):
        text[choice["index"]] += choice["text"]
    assert text[0] == text[1] == text[2] != ""

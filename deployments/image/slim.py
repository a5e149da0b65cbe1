"""Remove from the virtual environment what a server without a compiler, or without a GPU, cannot use.

    python slim.py VARIANT

VARIANT is torch's: cpu, or a CUDA release such as cu130. Fails if torch is of another one: an index that has
only other wheels would give us those. What libraries need for import, and their licences, stay.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import torch

GPU_ONLY = ("bitsandbytes/libbitsandbytes_cuda*.so",)
"""For NVIDIA's GPUs."""

UNUSED = (
    "bitsandbytes/libbitsandbytes_rocm*.so",
    "bitsandbytes/libbitsandbytes_xpu*.so",
    # To compile against, and torch's own tests.
    "torch/include",
    "torch/share/cmake",
    "torch/test",
    "torch/bin/*[tT]est*",
    "torch/bin/protoc*",
    "torch/lib/*_test.so",
    "torch/lib/libbackend_with_compiler.so",
    "torch/lib/libaoti_custom_ops.so",
)


def main() -> None:
    """Check torch's variant, then remove. Exits with 1 if it is another."""
    (variant,) = sys.argv[1:]
    if not torch.__version__.endswith(f"+{variant}"):
        sys.exit(f"TORCH_VARIANT={variant}, but torch is {torch.__version__}: see TORCH_INDEX_URL")
    packages = Path(sysconfig.get_path("purelib"))
    for pattern in UNUSED + (GPU_ONLY if variant == "cpu" else ()):
        for path in packages.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


main()

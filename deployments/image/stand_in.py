"""A stand-in for the base image, for a machine that reaches Debian's packages and no registry of images.

It is Debian's own Python on Debian's smallest system, stored under the official image's name. Images built on
it are for tests: they carry the label below, and its Python is of another patch release.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LABEL = "basaran-ops.base"

PACKAGES = ("ca-certificates", "netbase", "python3", "python3-venv", "tzdata")
"""What python:3-slim has beside Debian's smallest system."""

UNWANTED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc-base",
    "usr/share/man",
    "usr/share/locale",
)
"""What Debian's slim images leave out. Licences, in usr/share/doc, stay."""


def provide(name: str) -> str:
    """See to it that Buildah has the image `name`: pull it, or put a stand-in in its place.

    Returns the notice that what is built on it deserves; nothing if the image is the real one. Exits if it
    can neither be pulled nor replaced.
    """
    if not _stored(name) and _run("buildah", "pull", name).returncode != 0:
        _build(name)
    label = _inspect(name, f'{{{{index .OCIv1.Config.Labels "{LABEL}"}}}}')
    return f"NOT FOR RELEASE: the base is {label}" if label else ""


def _build(name: str) -> None:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        sys.exit(f"{name} cannot be pulled, and a stand-in takes root and debootstrap")
    release = name.rpartition("-")[2]
    print(f"{name} cannot be pulled: making a stand-in of Debian {release}'s packages", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        bootstrap = [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            release,
            str(root),
        ]
        subprocess.run(bootstrap, check=True, stdout=subprocess.DEVNULL)
        _add_headers(root)
        _strip(root)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        _commit(root, name, f"a stand-in for {name}, made by debootstrap")


def _add_headers(root: Path) -> None:
    """Python's headers, which the official image has, without the compiler that their package depends on."""
    python = next((root / "usr/bin").glob("python3.*")).name
    with tempfile.TemporaryDirectory(dir=root / "tmp") as directory:
        inside = f"cd {directory.removeprefix(str(root))} && apt-get download -qq lib{python}-dev"
        _run("chroot", str(root), "sh", "-c", inside, check=True)
        (package,) = Path(directory).glob("*.deb")
        _run("dpkg-deb", "--extract", str(package), f"{directory}/extracted", check=True)
        shutil.copytree(f"{directory}/extracted/usr/include", root / "usr/include", dirs_exist_ok=True)


def _strip(root: Path) -> None:
    for unwanted in UNWANTED:
        shutil.rmtree(root / unwanted, ignore_errors=True)
    # As in the official image, which has no bytecode.
    for cache in root.glob("usr/lib/python3*/**/__pycache__"):
        shutil.rmtree(cache)


def _commit(root: Path, name: str, label: str) -> None:
    container = _run("buildah", "from", "scratch", check=True).stdout.strip()
    try:
        _run("buildah", "copy", "--quiet", container, str(root), "/", check=True)
        path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        config = [
            "--env",
            f"PATH={path}",
            "--env",
            "LANG=C.UTF-8",
            "--label",
            f"{LABEL}={label}",
            "--cmd",
            "python",
        ]
        _run("buildah", "config", *config, container, check=True)
        _run("buildah", "commit", "--quiet", container, f"docker.io/library/{name}", check=True)
    finally:
        _run("buildah", "rm", container)


def _stored(name: str) -> bool:
    return _run("buildah", "inspect", "--type", "image", name).returncode == 0


def _inspect(name: str, template: str) -> str:
    return _run(
        "buildah", "inspect", "--type", "image", "--format", template, name, check=True
    ).stdout.strip()


def _run(*command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True)

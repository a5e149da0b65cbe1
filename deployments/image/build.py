"""Build the image: `make image`. With Docker where its daemon answers, else with Buildah.

    python deployments/image/build.py [--variant cpu] [--tag basaran-ops:0.1.0]

What this machine's pip is configured with holds in the build too, and only there: indexes, a proxy's
certificates, a directory of wheels. None of it ends in a layer.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import stand_in

ROOT = Path(__file__).parents[2]

PRECEDENCE = ("global", "install", ":env:")
"""Of pip's configuration the parts that concern us; what comes later wins."""

VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
SETTING = re.compile(r"^(?P<source>[^.]*)\.(?P<name>[^=]*)='(?P<value>.*)'$")
BASE = re.compile(r"^FROM (\S+:\S+) AS base$", re.MULTILINE)

KEPT = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "timeout", "retries")
"""Of pip's configuration, what makes sense on another file system."""


def main() -> None:
    """Build what the command line asks for. Exits with 1 or the builder's status if that fails."""
    parser = argparse.ArgumentParser(description="Build the image.")
    parser.add_argument("--variant", default="cpu", help="torch's: cpu, or a CUDA release such as cu130")
    parser.add_argument(
        "--tag", help="of the image; basaran-ops:VERSION, for GPUs basaran-ops:VERSION-VARIANT"
    )
    options = parser.parse_args()
    suffix = "" if options.variant == "cpu" else f"-{options.variant}"
    tag = options.tag or f"basaran-ops:{version()}{suffix}"
    tool = builder()
    notice = stand_in.provide(base_name()) if tool[0] == "buildah" else ""
    with pip_sources() as sources:
        arguments = [*tool, *sources, *described(options.variant)]
        if wheel_of_torch(options.variant):
            # Nothing to look for elsewhere.
            arguments += ["--build-arg", "TORCH_INDEX_URL="]
        run([*arguments, "--tag", tag, str(ROOT)])
    print(f"built {tag}")
    if notice:
        print(notice)


def builder() -> list[str]:
    """The command to build with. Exits if there is none."""
    if shutil.which("docker") and succeeds(["docker", "version"]):
        # Older ones have a builder without secrets, and another by request.
        os.environ.setdefault("DOCKER_BUILDKIT", "1")
        return ["docker", "build"]
    if shutil.which("buildah"):
        # Needs no more rights than root in a container has. The other format has no health check.
        os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
        return ["buildah", "build", "--format", "docker", "--layers"]
    sys.exit("neither a Docker daemon nor buildah is here: see `make image-tools`")


def described(variant: str) -> list[str]:
    """What the image says of itself."""
    revision = output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip() or "unknown"
    if revision != "unknown" and output(["git", "-C", str(ROOT), "status", "--porcelain"]):
        revision += "-modified"
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    created = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    values = {
        "TORCH_VARIANT": variant,
        "VERSION": version(),
        "REVISION": revision,
        "CREATED": created.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    return [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]


@contextmanager
def pip_sources() -> Iterator[list[str]]:
    """Arguments by which the build finds packages where this machine's pip does."""
    settings = pip_settings()
    lines = [f"{name} = {value}" for name, value in settings.items() if name in KEPT]
    arguments: list[str] = []
    wheels = directories_of_wheels()
    if wheels:
        arguments += ["--build-context", f"wheels={wheels[0]}"]
    for directory in wheels[1:]:
        print(f"pip's find-links={directory} is left out: the build takes one directory", file=sys.stderr)
    certificates = settings.get("cert")
    if certificates:
        arguments += ["--secret", f"id=ca-bundle,src={certificates}"]
        lines.append("cert = /run/secrets/ca-bundle")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("\n".join(["[global]", *lines, ""]))
        file.flush()
        yield [*arguments, "--secret", f"id=pip.conf,src={file.name}"]


def pip_settings() -> dict[str, str]:
    """What pip is configured with, by files and environment, less URLs of files, which a build cannot see."""
    found: dict[str, dict[str, str]] = {source: {} for source in PRECEDENCE}
    for line in output([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        match = SETTING.match(line)
        if match and match["source"] in found:
            words = [word for word in match["value"].split() if not word.startswith("file:")]
            found[match["source"]][match["name"]] = " ".join(words)
    settings = {name: value for source in PRECEDENCE for name, value in found[source].items()}
    return {name: value for name, value in settings.items() if value}


def directories_of_wheels() -> list[Path]:
    """Where pip looks for wheels before it asks an index."""
    words = pip_settings().get("find-links", "").split()
    return [path for path in map(Path, words) if path.is_dir()]


def wheel_of_torch(variant: str) -> bool:
    """Whether a directory that the build gets has it."""
    return any(list(path.glob(f"torch-*+{variant}-*.whl")) for path in directories_of_wheels()[:1])


def version() -> str:
    """The project's."""
    match = VERSION.search((ROOT / "basaran_ops/__init__.py").read_text())
    assert match is not None
    return match[1]


def base_name() -> str:
    """The image that ours begins with."""
    match = BASE.search((ROOT / "Dockerfile").read_text())
    assert match is not None
    return match[1]


def run(command: list[str]) -> None:
    """Exits with the command's status if it fails."""
    print(shlex.join(command), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def succeeds(command: list[str]) -> bool:
    """Whether it exits with 0. What it prints is not shown."""
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def output(command: list[str]) -> str:
    """What it prints; nothing if it fails."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()

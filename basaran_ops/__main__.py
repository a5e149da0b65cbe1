"""`python -m basaran_ops` and `basaran-ops`: become the server, by exec'ing gunicorn."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import NoReturn

from .pool.placement import placements
from .settings import InvalidSettings, Settings
from .telemetry.tracing import check_tracing

USAGE = """\
usage: basaran-ops [--help | --version]

Serves a Hugging Face text-generation model behind an OpenAI-compatible API.
Configured by environment variables:

"""


def main() -> NoReturn:
    """Check the settings, then exec gunicorn with our configuration. Exits with 2 if they are invalid."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"basaran_ops {version('basaran-ops')}")
        sys.exit(0)
    if arguments:
        print(USAGE + describe_settings())
        sys.exit(0 if arguments in (["--help"], ["-h"]) else 2)
    try:
        placements(Settings.from_environment(os.environ), os.environ)
        check_tracing(os.environ)
    except InvalidSettings as error:
        print(f"invalid settings:\n{error}", file=sys.stderr)
        sys.exit(2)
    command = [sys.executable, "-m", "gunicorn", "-c", "python:basaran_ops.server.gunicorn_conf"]
    os.execv(sys.executable, command)  # noqa: S606 - that is the point


def describe_settings() -> str:
    """One line for each setting: variable, default, meaning."""
    return "\n".join(
        f"  {name.upper()}={'' if field.default is None else field.default}\n      {field.description}"
        for name, field in Settings.model_fields.items()
    )


if __name__ == "__main__":
    main()

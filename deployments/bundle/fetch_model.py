"""Fetch the model that MODEL names, as the server would, into a directory of its own.

python fetch_model.py DIRECTORY
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from basaran_ops.checkpoint import resolve
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

target = Path(sys.argv[1])
try:
    checkpoint = resolve(Settings.from_environment(os.environ), print)
except ModelLoadError as error:
    sys.exit(error.message)
# The hub's cache is made of links; whoever runs the image shall read what they lead to.
shutil.copytree(checkpoint.path, target)
for path in target.rglob("*"):
    path.chmod(0o755 if path.is_dir() else 0o644)

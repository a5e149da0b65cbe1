"""Fetches the model into the cache, or ends so that the kubelet begins again: for an init container."""

import functools
import os
import signal
import sys

from basaran_ops.checkpoint import resolve
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

# Nothing catches it: a download that hangs ends here.
signal.alarm(int(os.environ["DOWNLOAD_TIMEOUT"]))
try:
    resolve(Settings.from_environment(os.environ), functools.partial(print, flush=True))
except ModelLoadError as error:
    sys.exit(str(error))

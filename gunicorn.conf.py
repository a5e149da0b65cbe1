"""For `gunicorn` run in this directory; `python -m basaran_ops` uses the same configuration."""

from basaran_ops.server.gunicorn_conf import *  # noqa: F403

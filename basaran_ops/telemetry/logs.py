"""One chain for all logs: ours, gunicorn's and the libraries', as JSON lines or for a person's eyes."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ..settings import Settings

NOISY = ("httpx", "httpcore", "urllib3", "filelock", "huggingface_hub", "transformers", "accelerate")
"""Libraries whose information is of no use to an operator; their warnings are."""


def configure_logs(settings: Settings, *, process: str) -> None:
    """Send every log record of this process to standard error. Call once, before anything logs."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(as_json, process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    adopt_library_loggers()
    if as_json:
        # Their progress bars and advice are written around the logging system.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.captureWarnings(True)


def adopt_library_loggers() -> None:
    """Route libraries' loggers through our chain. Again after importing one that installs its own handler."""
    for name in NOISY:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def _formatter(as_json: bool, process: str) -> logging.Formatter:
    def add_process(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_process,
    ]
    renderers: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        # Never the locals of a frame: they hold prompts and keys.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderers += [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]
    else:
        plain: Any = structlog.dev.plain_traceback
        renderers.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=renderers)

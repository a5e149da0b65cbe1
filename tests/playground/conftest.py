"""A real Chromium, servers for it, and pages that fail a test by whatever the browser complains of."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from ..clients.conftest import TEMPLATE
from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny

KEY = "the-key"

REFUSALS = r"Failed to load resource: the server responded with a status of (4|5)\d\d"
"""What Chromium itself writes of an answer that is an error: the page cannot keep it from that."""


def chromium() -> str:
    path = shutil.which("chromium")
    assert path is not None, "chromium is missing: `make tools`"
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module: minutes after its start it starts services that would look like a test's leak."""
    with launched() as browser:
        yield browser


@contextmanager
def launched() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    with sync_playwright() as playwright:
        # As root it has no sandbox. No --disable-features: it would replace Playwright's own.
        options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        with playwright.chromium.launch(executable_path=chromium(), args=options) as browser:
            # Its helper processes start with its first page and stay.
            with browser.new_page() as first:
                first.goto("data:text/html,<title>first</title>")
            yield browser


@pytest.fixture(scope="package")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A tiny model that also converses, at random. It never ends by itself."""
    directory = tmp_path_factory.mktemp("playground")
    template = directory / "template.jinja"
    template.write_text(TEMPLATE)
    with running_server(
        directory / "log",
        MODEL=str(tiny_path),
        SERVER_MODEL_NAME="org/tiny",
        MODEL_CHAT_TEMPLATE=str(template),
        ENGINE_SLOTS="4",
        MODEL_DTYPE="float32",
        COMPLETION_MAX_N="5",
        COMPLETION_MAX_LOGPROBS="7",
    ) as server:
        yield server.wait_ready()


@pytest.fixture(scope="package")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One slot, a key, no chat template, and room for thousands of tokens."""
    directory = tmp_path_factory.mktemp("keyed")
    with running_server(
        directory / "log",
        MODEL=str(save_tiny(directory / "model", eos=None, max_position_embeddings=16384)),
        SERVER_MODEL_NAME="org/keyed",
        SERVER_API_KEYS=KEY,
        SERVER_QUEUE_LIMIT="0",
        ENGINE_SLOTS="1",
        ENGINE_CONTEXT_LENGTH="16384",
        MODEL_DTYPE="float32",
    ) as server:
        yield server.wait_ready()


class Complaints:
    """All that a browser had to say against a page, and every host that it asked."""

    def __init__(self, context: BrowserContext, allowed: str) -> None:
        """What matches the expression `allowed` is no complaint."""
        self.found: list[str] = []
        self._allowed = re.compile(allowed)
        self.hosts: set[str] = set()
        context.on("console", self._console)
        context.on("weberror", lambda error: self.found.append(str(error.error)))
        context.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if not self._allowed.match(message.text):
            self.found.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        self.hosts.add(request.url.split("/")[2])


Visit = Callable[..., Page]

CLOSING_SECONDS = 30.0
"""A page's process ends some time after the page."""


def processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open the playground of a server. At the end nothing may have been written to the console, and no other
    host been asked.
    """
    visited: list[tuple[BrowserContext, Complaints, str]] = []

    def visit(
        server: RunningServer,
        fragment: str = "",
        *,
        path: str = "/",
        state: str = "ready",
        width: int = 1280,
        allowed: str = "$^",
        **options: object,
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)  # type: ignore[arg-type]
        context.set_default_timeout(20_000)
        visited.append((context, Complaints(context, allowed), server.url.split("/")[2]))
        page = context.new_page()
        page.goto(server.url + path + fragment)
        page.wait_for_selector(f"#connection[data-state={state}]")
        return page

    before = processes()
    yield visit
    for context, _, _ in visited:
        context.close()
    until = time.monotonic() + CLOSING_SECONDS
    while (left := processes() - before) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left, [(process.pid, process.cmdline()[:6]) for process in left]
    for _, complaints, host in visited:
        assert complaints.found == []
        assert complaints.hosts <= {host}

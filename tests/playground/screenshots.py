"""Takes the pictures of docs/playground.md: the page as it is, with the default model. `make screenshots`."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, expect

from ..running_server import READY_SECONDS, RunningServer, running_server
from .actions import choose_chat, finish, set_parameters, tokens
from .conftest import launched

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MOST_BYTES = 150_000

Scheme = Literal["light", "dark"]


def run(page: Page, text: str, **parameters: str) -> None:
    page.fill("#input", text)
    set_parameters(page, **parameters)
    page.locator("#input").press("Control+Enter")
    finish(page)


def probabilities(page: Page) -> None:
    run(page, "Once upon a time, in a small village by the sea,", seed="7", max_tokens="90")
    tokens(page).nth(12).click()


def several(page: Page) -> None:
    run(page, "Three things that every sailor knows about the sea:", n="2", seed="3", max_tokens="70")


def conversation(page: Page) -> None:
    choose_chat(page)
    page.get_by_role("button", name="Add a message").click()
    page.locator("#messages textarea").fill("You are a helpful assistant. Answer in one sentence.")
    run(page, "What is the capital of France?", temperature="0", max_tokens="40")
    run(page, "And of Italy?")


def refusal(page: Page) -> None:
    run(page, "The capital of France is", temperature="3")


PICTURES: list[tuple[str, Callable[[Page], None], Scheme, int, int]] = [
    ("probabilities", probabilities, "light", 1200, 720),
    ("choices-dark", several, "dark", 1200, 720),
    ("chat", conversation, "light", 1200, 720),
    ("error-dark", refusal, "dark", 1200, 600),
    ("small", probabilities, "light", 360, 740),
]


def take(
    browser: Browser, server: RunningServer, shown: tuple[str, Callable[[Page], None], Scheme, int, int]
) -> None:
    name, show, scheme, width, height = shown
    viewport = {"width": width, "height": height}
    with browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce") as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
        # What runs is the same whether the settings are seen or not.
        if not page.locator("#preset").is_visible():
            page.locator("#settings > summary").click()
        show(page)
        if width < 960:
            page.evaluate("scrollTo(0, document.querySelector('#output').offsetTop - 60)")
        else:
            page.evaluate("scrollTo(0, 0); document.querySelector('.settings').scrollTo(0, 0)")
        path = IMAGES / f"playground-{name}.png"
        page.screenshot(path=path)
        subprocess.run(["pngquant", "--force", "--strip", "--ext", ".png", path], check=True)
        size = path.stat().st_size
        print(f"{path.name}: {size} bytes")
        assert size < MOST_BYTES


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        running_server(Path(directory) / "log", ENGINE_SLOTS="4", MODEL_DTYPE="float32") as server,
        launched() as browser,
    ):
        server.wait_for(lambda health: health["status"] == "ready", READY_SECONDS * 3)
        for picture in PICTURES:
            take(browser, server, picture)


if __name__ == "__main__":
    main()

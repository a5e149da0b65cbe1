"""What a user does on the page, and what there is to be seen then."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, Response, expect

from ..running_server import RunningServer
from .conftest import KEY, Visit

PROMPT = "the cat sat on the"
GREEDY = {"temperature": "0", "max_tokens": "24"}


def ask(page: Page, text: str, **parameters: str) -> None:
    """Write a prompt, or a message, set parameters, and run it."""
    page.fill("#input", text)
    set_parameters(page, **parameters)
    page.get_by_role("button", name="Run").click()


def set_parameters(page: Page, **parameters: str) -> None:
    for name, value in parameters.items():
        page.evaluate(f"document.getElementById('parameter-{name}').closest('details').open = true")
        page.fill(f"#parameter-{name}", value)


def finish(page: Page) -> None:
    """Wait until all has come."""
    expect(page.get_by_role("button", name="Run")).to_be_visible(timeout=60_000)


def answer(page: Page, choice: int = 0) -> str:
    """The text shown, to the character: marks of the style are none of it."""
    text = page.locator("#answers .tokens").nth(choice).text_content()
    assert text is not None
    return text


def tokens(page: Page) -> Locator:
    return page.locator("#answers .token")


def choose_chat(page: Page) -> None:
    page.locator("#modes label", has_text="Chat").click()


def sent(page: Page, text: str, **parameters: str) -> tuple[dict[str, Any], Response]:
    """Ask and finish; the body that was sent, and what it was answered with."""
    with page.expect_response(
        lambda response: "/v1/" in response.url and "models" not in response.url
    ) as found:
        ask(page, text, **parameters)
    finish(page)
    body = found.value.request.post_data_json
    assert isinstance(body, dict)
    return body, found.value


def plain(server: RunningServer, **fields: object) -> str:
    """What the API answers to the same, without the page."""
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24} | fields
    text: str = server.complete(**asked).json()["choices"][0]["text"]
    return text


def with_key(visit: Visit, server: RunningServer, **options: Any) -> Page:
    page = visit(server, state="key", **options)
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    return page

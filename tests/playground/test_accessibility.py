"""axe-core finds nothing to object to, in any state that the page has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from ..running_server import RunningServer
from .actions import GREEDY, PROMPT, choose_chat, sent, tokens
from .conftest import REFUSALS, Visit

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@cache
def axe() -> str:
    assert AXE.exists(), "axe-core is missing: `make clients`"
    return AXE.read_text()


def violations(page: Page) -> list[str]:
    """What axe-core objects to, and to which nodes."""
    # By the debugger, where the page's own policy does not reach.
    page.evaluate(axe())
    found: dict[str, Any] = page.evaluate("(tags) => axe.run(document, { runOnly: tags })", TAGS)
    assert len(found["passes"]) > 20, "it looked at the page"
    return [
        f"{v['id']}: {[(node['html'][:150], node['failureSummary']) for node in v['nodes']][:5]}"
        for v in found["violations"]
    ]


def empty(page: Page) -> None:
    expect(page.locator("#output")).to_be_hidden()


def everything_open(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")


def answered(page: Page) -> None:
    sent(page, PROMPT, temperature="1", max_tokens="80", seed="1")
    assert page.locator("#legend .token").count() == 5, "all colours are there"


def long_and_plain(page: Page) -> None:
    """A box that scrolls and has nothing in it that could be walked to."""
    page.uncheck("#probabilities")
    sent(page, PROMPT, max_tokens="400")


def opened(page: Page) -> None:
    answered(page)
    tokens(page).nth(5).click()
    expect(page.get_by_role("dialog")).to_be_visible()


def conversing(page: Page) -> None:
    choose_chat(page)
    sent(page, "the cat", **GREEDY)
    sent(page, "the hat", **GREEDY, n="2")


def refused(page: Page) -> None:
    sent(page, PROMPT, temperature="3")
    expect(page.get_by_role("alert")).to_contain_text("temperature")


SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]

STATES = [empty, everything_open, answered, long_and_plain, opened, conversing, refused]


@pytest.mark.parametrize("reach", STATES, ids=lambda reach: reach.__name__)
def test_axe_has_nothing_to_object_to(
    server: RunningServer, visit: Visit, reach: Callable[[Page], None]
) -> None:
    page = visit(server, reduced_motion="reduce", allowed=REFUSALS)
    reach(page)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        # Settings fold themselves where the screen becomes small.
        expect(page.locator("#settings[open]")).to_have_count(int(width > 960))
        page.evaluate("document.getElementById('settings').open = true")
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == [], (width, scheme)


def test_axe_objects_to_what_it_should(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    page.evaluate("document.querySelector('label[for=input]').remove()")
    page.evaluate("document.body.style.setProperty('--soft', '#ccc')")
    found = " ".join(violations(page))
    assert "color-contrast" in found


def test_every_control_has_a_name_and_what_happens_is_said_once(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    everything_open(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button")]
          .filter((node) => node.checkVisibility() && node.ariaHidden !== "true")
          .filter((node) => !node.labels?.length && !node.ariaLabel && !node.innerText?.trim())
          .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    page.evaluate(
        """() => {
          window.said = [];
          const status = document.querySelector("[role=status]");
          const told = () => window.said.push(status.textContent);
          new MutationObserver(told).observe(status, { childList: true });
        }"""
    )
    sent(page, PROMPT, max_tokens="60")
    said = page.evaluate("window.said")
    assert len(said) == 2, "its beginning and its end, not each token"
    assert said[0] == "Generating."
    assert said[1].startswith("Done: 60 tokens in ")
    live = page.locator("#answers [aria-live], #answers [role=status], #answers [role=log]")
    assert live.count() == 0

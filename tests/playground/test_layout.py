"""Themes, small screens, the keyboard."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ..running_server import RunningServer
from .actions import sent, tokens
from .conftest import Visit


def test_the_whole_page_is_reached_with_the_keyboard_alone(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    reached: list[str] = []
    while "reset" not in reached and len(reached) < 80:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or reached[-1] == "mode", reached
    bar, input_ = ["skip", "model", "theme"], ["mode", "copy-curl", "copy-python", "input", "run"]
    settings = ["key", "preset", "stream", "probabilities", "parameter-temperature", "parameter-max_tokens"]
    assert [name for name in reached if name in bar + input_ + settings] == bar + input_ + settings


def test_the_theme_is_the_systems_until_it_is_chosen(server: RunningServer, visit: Visit) -> None:
    page = visit(server, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    button = page.get_by_role("button", name="Theme")
    expect(button).to_have_text("Theme: auto")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    assert page.evaluate(ground) == dark
    page.reload()
    expect(button).to_have_text("Theme: dark")
    assert page.evaluate(ground) == dark
    button.click()
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [320, 360, 768])
def test_small_screens_have_it_all_without_scrolling_sideways(
    server: RunningServer, visit: Visit, width: int
) -> None:
    page = visit(server, width=width)
    page.locator("#settings > summary").click()
    sent(page, "word " * 20 + "x" * 120, n="2", max_tokens="30")
    page.locator("#settings > summary").click()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.locator("#settings > summary").click()
    tokens(page).nth(3).click()
    panel = page.get_by_role("dialog").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    assert page.evaluate(overflow) == 0

"""Text is never markup, whoever wrote it."""

from __future__ import annotations

from playwright.sync_api import expect

from ..running_server import RunningServer
from .actions import answer, choose_chat, sent, set_parameters, tokens
from .conftest import Visit

HOSTILE = "<img src=x onerror=alert(1)><script>document.title='owned'</script><b>&amp;</b> `${1}` </textarea>"


def test_hostile_text_is_text_wherever_it_comes_from(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    page.add_init_script("window.alert = () => { throw new Error('it ran') }")
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    set_parameters(page, max_tokens="2")
    page.evaluate("document.getElementById('parameter-echo').closest('details').open = true")
    page.check("#parameter-echo")
    sent(page, HOSTILE)
    assert answer(page).startswith(HOSTILE)
    tokens(page).nth(3).click()
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator("#input")).to_have_value(HOSTILE)
    choose_chat(page)
    sent(page, HOSTILE, max_tokens="2")
    sent(page, "next", max_tokens="2")
    assert page.locator("#messages textarea").first.input_value() == HOSTILE
    assert page.title() == "org/tiny · Playground"
    assert page.locator("main img, main script, main b, #alternatives b").count() == 0


def test_the_policy_stops_what_is_inserted_as_markup(server: RunningServer, visit: Visit) -> None:
    # Chromium writes of each that it stopped.
    page = visit(server, allowed=".*(TrustedHTML|TrustedScript|trusted-types|Trusted Type)")
    blocked = page.evaluate(
        """() => {
          const caught = [];
          for (const insert of [
            () => { document.body.innerHTML = "<b>x</b>"; },
            () => document.body.insertAdjacentHTML("beforeend", "<b>x</b>"),
            () => { document.createElement("script").text = "1"; },
            () => trustedTypes.createPolicy("mine", { createHTML: (text) => text }),
          ]) {
            try { insert(); } catch (error) { caught.push(error.name); }
          }
          return caught;
        }"""
    )
    assert blocked == ["TypeError"] * 4

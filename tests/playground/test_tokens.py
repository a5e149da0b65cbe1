"""Token probabilities, alternatives, and going on from a token."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from ..running_server import RunningServer
from .actions import GREEDY, PROMPT, answer, choose_chat, finish, plain, sent, tokens
from .conftest import Visit


def test_tokens_are_coloured_by_probability_and_a_click_shows_the_alternatives(
    server: RunningServer, visit: Visit
) -> None:
    page = visit(server)
    sent(page, PROMPT, temperature="1", seed="1", max_tokens="40")
    whole = server.complete(
        prompt=PROMPT, temperature=1, seed=1, max_tokens=40, top_p=0.95, logprobs=5
    ).json()
    logprobs = whole["choices"][0]["logprobs"]
    levels = []
    for position, logprob in enumerate(logprobs["token_logprobs"]):
        probability = 2.718281828459045**logprob
        level = next(n for n, least in enumerate((0.8, 0.5, 0.2, 0.05, 0)) if probability >= least)
        levels.append(level)
        expect(tokens(page).nth(position)).to_have_class(re.compile(rf"\blevel-{level}\b"))
    assert len(set(levels)) >= 3, "the prompt is one that has all kinds"
    grounds = {
        level: tokens(page)
        .nth(levels.index(level))
        .evaluate("(node) => getComputedStyle(node).backgroundColor")
        for level in set(levels)
    }
    assert len(set(grounds.values())) == len(grounds)

    tokens(page).nth(4).click()
    panel = page.get_by_role("dialog")
    expect(panel).to_be_visible()
    told = logprobs["top_logprobs"][4]
    rows = panel.locator("#alternatives-list button")
    assert rows.count() == len(told)
    likeliest = sorted(told.values(), reverse=True)
    shares = [row.inner_text() for row in rows.locator(".percent").all()]
    assert [float(share.strip("<%")) for share in shares] == pytest.approx(
        [2.718281828459045**value * 100 for value in likeliest], abs=0.06
    )
    expect(panel).to_contain_text(f"{logprobs['token_logprobs'][4]:.4f}")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(tokens(page).nth(4)).to_be_focused()


def test_regenerating_from_a_token_goes_on_exactly_there(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    sent(page, PROMPT, **GREEDY)
    whole = answer(page)
    texts = tokens(page).all_text_contents()
    # After a whole character: one that is cut in two is shown as two.
    position = next(n for n in range(7, 24) if texts[n - 1].isascii() and texts[n - 1] and texts[n].isascii())
    tokens(page).nth(position).click()
    with page.expect_request("**/v1/completions") as found:
        page.get_by_role("button", name="Regenerate from here").click()
    finish(page)
    body = found.value.post_data_json
    greedy = server.complete(prompt=PROMPT, temperature=0, max_tokens=24, return_token_ids=True).json()
    ids = greedy["choices"][0]["prompt_token_ids"] + greedy["choices"][0]["token_ids"]
    kept = len(greedy["choices"][0]["prompt_token_ids"]) + position
    assert body["prompt"] == ids[:kept]
    # As many again as max_tokens says: the greedy text, and more of it.
    assert answer(page) == plain(server, max_tokens=24 + position)
    assert answer(page).startswith(whole.rstrip("\ufffd"))
    assert tokens(page).all_text_contents()[:position] == texts[:position]


def test_choosing_an_alternative_goes_on_with_it_and_can_be_undone(
    server: RunningServer, visit: Visit
) -> None:
    page = visit(server)
    sent(page, PROMPT, **GREEDY)
    whole = answer(page)
    tokens(page).nth(5).click()
    with page.expect_request("**/v1/completions") as found:
        page.locator("#alternatives-list button").nth(1).click()
    finish(page)
    ids = found.value.post_data_json["prompt"]
    greedy = server.complete(
        prompt=PROMPT, temperature=0, max_tokens=24, logprobs=5, return_token_ids=True
    ).json()
    (choice,) = greedy["choices"]
    told = choice["logprobs"]["top_logprobs"][5]
    second = sorted(told, key=told.__getitem__, reverse=True)[1]
    assert ids == [
        *choice["prompt_token_ids"], *choice["token_ids"][:5], choice["logprobs"]["top_token_ids"][5][second]
    ]  # fmt: skip
    rest = server.complete(prompt=ids, temperature=0, max_tokens=24).json()["choices"][0]["text"]
    assert answer(page).endswith(rest)
    assert tokens(page).count() == 6 + 24
    expect(tokens(page).nth(5)).to_have_class(re.compile(r"\bpicked\b"))
    page.get_by_role("button", name="before it was regenerated").click()
    assert answer(page) == whole
    assert tokens(page).count() == 24


def test_a_chats_answer_is_regenerated_from_its_token(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    choose_chat(page)
    sent(page, "the cat", **GREEDY)
    whole = answer(page)
    tokens(page).nth(9).click()
    page.get_by_role("button", name="Regenerate from here").click()
    finish(page)
    assert answer(page).startswith(whole)
    assert tokens(page).count() == 9 + 24


def test_an_echoed_prompts_tokens_can_be_gone_on_from_too(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    page.evaluate("document.getElementById('parameter-echo').closest('details').open = true")
    page.check("#parameter-echo")
    sent(page, PROMPT, **GREEDY)
    tokens(page).first.click()
    expect(page.get_by_role("dialog")).to_contain_text("nothing predicts it")
    page.keyboard.press("Escape")
    tokens(page).nth(2).click()
    with page.expect_request("**/v1/completions") as found:
        page.get_by_role("button", name="Regenerate from here").click()
    finish(page)
    assert (
        found.value.post_data_json["prompt"]
        == server.http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"][:2]
    )


def test_tokens_are_walked_with_the_arrows_and_opened_with_enter(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    sent(page, PROMPT, temperature="0", max_tokens="200")
    assert page.locator("#answers .token[tabindex='0']").count() == 1
    tokens(page).first.focus()
    for key, position in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 199), ("Home", 0)):
        page.keyboard.press(key)
        expect(tokens(page).nth(position)).to_be_focused()
    page.keyboard.press("ArrowDown")
    top = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert top > tokens(page).first.bounding_box()["y"]
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") < top
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    panel = page.get_by_role("dialog")
    expect(panel).to_be_visible()
    expect(panel.locator("#alternatives-list button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(tokens(page).nth(1)).to_be_focused()
    assert page.locator("#answers .token[tabindex='0']").count() == 1


def test_an_answer_apart_from_the_prompt_cannot_be_gone_on_with_and_that_is_said(
    server: RunningServer, visit: Visit
) -> None:
    page = visit(server)
    listed: dict[str, Any] = httpx.get(f"{server.url}/v1/models").json()
    apart = {
        "data": [
            model | {"capabilities": model["capabilities"] | {"continuation": False}}
            for model in listed["data"]
        ]
    }
    page.route("**/v1/models", lambda route: route.fulfill(json=apart))
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    sent(page, PROMPT, **GREEDY)
    tokens(page).nth(2).click()
    panel = page.get_by_role("dialog")
    expect(panel).to_contain_text("cannot go on from a part of one")
    expect(page.locator("#regenerate")).to_be_hidden()
    assert panel.locator("#alternatives-list button:not([disabled])").count() == 0

"""What is asked and what is shown of it, on a real server."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import httpx
from playwright.sync_api import expect

from ..running_server import RunningServer
from .actions import GREEDY, PROMPT, answer, ask, finish, plain, sent, set_parameters, tokens, with_key
from .conftest import Visit


def test_a_prompt_is_answered_as_the_api_answers_it(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    body, response = sent(page, PROMPT, **GREEDY)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert body["stream"] is True
    assert answer(page) == plain(server)
    assert tokens(page).count() == 24
    assert page.title() == "org/tiny · Playground"
    expect(page.locator("#failure")).to_be_empty()
    expect(page.locator(".reason")).to_have_text("length")


def test_without_streaming_the_answer_comes_whole_and_is_the_same(
    server: RunningServer, visit: Visit
) -> None:
    page = visit(server)
    page.uncheck("#stream")
    body, response = sent(page, PROMPT, **GREEDY)
    assert response.headers["content-type"] == "application/json"
    assert "stream" not in body
    assert answer(page) == plain(server)
    expect(page.locator("#count-completion")).to_have_text("24 tokens")
    expect(page.locator("#first-token")).to_have_text("–")  # noqa: RUF001 - as the page writes it


def test_without_probabilities_the_text_is_plain(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    page.uncheck("#probabilities")
    body, _ = sent(page, PROMPT, **GREEDY)
    assert "logprobs" not in body
    assert answer(page) == plain(server)
    assert tokens(page).count() == 0
    expect(page.locator("#legend")).to_be_hidden()
    expect(page.locator("#count-completion")).to_have_text("24 tokens")


def test_text_is_shown_while_it_comes_and_stopping_frees_the_slot(
    keyed_server: RunningServer, visit: Visit
) -> None:
    page = with_key(visit, keyed_server)
    ask(page, PROMPT, max_tokens="16000")
    expect(page.locator("[data-position='9']")).to_be_attached()
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_focused()
    expect(page.locator("#output")).to_have_attribute("aria-busy", "true")
    assert keyed_server.wait_for(lambda health: health["outstanding"] == 1)["ready"]
    stop.click()
    keyed_server.wait_for(lambda health: health["outstanding"] == 0, seconds=5)
    finish(page)
    kept = answer(page)
    assert kept
    expect(page.get_by_role("status")).to_have_text(re.compile("^Stopped: "))
    expect(page.locator("#failure")).to_be_empty()
    # The one slot is free: the next request is answered, not refused.
    sent(page, PROMPT, max_tokens="3")
    assert tokens(page).count() == 3


def test_escape_stops_and_control_enter_runs(keyed_server: RunningServer, visit: Visit) -> None:
    page = with_key(visit, keyed_server)
    set_parameters(page, max_tokens="16000")
    page.fill("#input", PROMPT)
    page.locator("#input").press("Control+Enter")
    expect(page.locator("[data-position='3']")).to_be_attached()
    page.keyboard.press("Escape")
    keyed_server.wait_for(lambda health: health["outstanding"] == 0, seconds=5)
    finish(page)


def test_several_choices_are_side_by_side(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    sent(page, PROMPT, n="3", seed="2", max_tokens="12")
    choices = server.complete(prompt=PROMPT, n=3, seed=2, max_tokens=12, temperature=0.7, top_p=0.95).json()[
        "choices"
    ]
    assert [answer(page, index) for index in range(3)] == [choice["text"] for choice in choices]
    assert [panel.inner_text() for panel in page.locator("h3").all()] == ["Choice 1", "Choice 2", "Choice 3"]
    boxes = [panel.bounding_box() for panel in page.locator(".panel").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]


def test_counters_tell_tokens_and_speed(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    sent(page, PROMPT, max_tokens="30")
    prompt_tokens = len(server.http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"])
    expect(page.locator("#count-prompt")).to_have_text(f"{prompt_tokens} tokens")
    expect(page.locator("#count-completion")).to_have_text("30 tokens")
    expect(page.locator("#speed")).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))
    expect(page.locator("#first-token")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#total-time")).to_have_text(re.compile(r"^[\d.]+ s$"))
    expect(page.locator("#input-count")).to_have_text(f"{prompt_tokens} tokens of 512")
    seconds = float(page.locator("#total-time").inner_text().split()[0])
    first = float(page.locator("#first-token").inner_text().split()[0]) / 1000
    assert first <= seconds + 0.05


def test_thousands_of_tokens_stream_and_can_be_opened(keyed_server: RunningServer, visit: Visit) -> None:
    page = with_key(visit, keyed_server)
    answered = "".join(
        "data: " + json.dumps({"choices": [{"index": 0, "text": f" w{n}", "token_ids": [n % 300],
            "prompt_token_ids": [1] if n == 0 else None, "finish_reason": None,
            "logprobs": {"tokens": [f" w{n}"], "token_logprobs": [-0.1 * (n % 40)], "text_offset": [0],
                         "top_logprobs": [{f" w{n}": -0.1 * (n % 40), " x": -2}],
                         "top_token_ids": [{f" w{n}": n % 300, " x": 5}]}}]}) + "\n\n"
        for n in range(6000)
    )  # fmt: skip
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(body=answered + "data: [DONE]\n\n", content_type="text/event-stream"),
    )
    page.evaluate(
        """() => {
          window.frames = [];
          const tick = (now) => {
            window.frames.push(now);
            requestAnimationFrame(tick);
          };
          requestAnimationFrame(tick);
        }"""
    )
    ask(page, PROMPT)
    finish(page)
    assert tokens(page).count() == 6000
    assert answer(page).endswith(" w5998 w5999")
    scrolled = page.locator(".tokens").evaluate(
        "(node) => node.scrollHeight - node.scrollTop - node.clientHeight"
    )
    assert scrolled < 40, "the end stays in view"
    tokens(page).nth(5999).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    frames = page.evaluate("window.frames")
    print(f"longest frame {max(b - a for a, b in itertools.pairwise(frames)):.0f} ms of {len(frames)}")


def test_a_model_that_is_loading_is_waited_for(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    listed: dict[str, Any] = httpx.get(f"{server.url}/v1/models").json()
    loading = {"data": [model | {"max_model_len": None, "capabilities": None} for model in listed["data"]]}
    page.route("**/v1/models", lambda route: route.fulfill(json=loading), times=1)
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "loading")
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")

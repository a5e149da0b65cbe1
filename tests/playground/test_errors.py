"""Errors as the server said them, and keys."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from ..running_server import RunningServer
from .actions import PROMPT, ask, finish, sent, tokens, with_key
from .conftest import KEY, REFUSALS, Visit


def test_an_error_is_shown_as_the_server_said_it(server: RunningServer, visit: Visit) -> None:
    page = visit(server, allowed=REFUSALS)
    _, response = sent(page, PROMPT, temperature="3")
    said = response.json()["error"]
    failure = page.get_by_role("alert")
    request_id = response.headers["x-request-id"]
    for fact in (said["message"], said["type"], said["param"], "400", request_id):
        expect(failure).to_contain_text(fact)
    expect(page.locator("#output")).to_be_hidden()
    field = page.locator("#parameter-temperature")
    expect(field).to_have_attribute("aria-invalid", "true")
    failure.get_by_role("button", name="Show the setting").click()
    expect(field).to_be_focused()
    sent(page, PROMPT, temperature="1")
    expect(failure).to_be_empty()
    expect(field).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("stop_token_ids", "1, x", "stop_token_ids"),
        ("logit_bias", "{not json", "logit_bias"),
        ("n", "6", "n"),
    ],
)
def test_what_cannot_be_read_is_sent_as_it_stands_and_the_server_says_what_is_wrong(
    server: RunningServer, visit: Visit, name: str, value: str, param: str
) -> None:
    page = visit(server, allowed=REFUSALS)
    _, response = sent(page, PROMPT, **{name: value})
    said = response.json()["error"]
    assert said["param"].startswith(param)
    expect(page.get_by_role("alert")).to_contain_text(said["message"])


def test_a_full_queue_is_told_with_when_to_ask_again(keyed_server: RunningServer, visit: Visit) -> None:
    first, second = with_key(visit, keyed_server), with_key(visit, keyed_server, allowed=REFUSALS)
    ask(first, PROMPT, max_tokens="16000")
    keyed_server.wait_for(lambda health: health["outstanding"] == 1)
    sent(second, PROMPT)
    expect(second.get_by_role("alert")).to_contain_text("queue_full")
    expect(second.get_by_role("alert")).to_contain_text(re.compile(r"Retry after\s*\d+ s"))
    first.get_by_role("button", name="Stop").click()
    keyed_server.wait_for(lambda health: health["outstanding"] == 0)


def event(payload: object) -> str:
    return f"data: {json.dumps(payload)}\n\n"


def chunk(text: str, **more: object) -> str:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None} | more
    return event({"object": "text_completion", "choices": [choice]})


FAILED = {
    "message": "The engine stopped <b>unexpectedly</b>",
    "type": "server_error",
    "param": None,
    "code": "engine_failed",
}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            chunk("so far") + event({"error": FAILED}) + "data: [DONE]\n\n",
            [FAILED["message"], "engine_failed"],
        ),
        (chunk("so far"), ["The connection ended before the answer did."]),
    ],
    ids=["an error event", "an end too soon"],
)
def test_a_failure_in_mid_stream_keeps_the_text_and_is_told(
    server: RunningServer, visit: Visit, body: str, said: list[str]
) -> None:
    page = visit(server)
    page.route("**/v1/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.uncheck("#probabilities")
    ask(page, PROMPT)
    for words in said:
        expect(page.get_by_role("alert")).to_contain_text(words)
    finish(page)
    assert page.locator("#failure b").count() == 0


def test_an_answer_of_a_proxy_and_a_server_that_is_gone_are_told(server: RunningServer, visit: Visit) -> None:
    page = visit(server, allowed=REFUSALS)
    page.route("**/v1/completions", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    ask(page, PROMPT)
    expect(page.get_by_role("alert")).to_contain_text("<h1>Bad Gateway</h1>")
    expect(page.get_by_role("alert")).to_contain_text("502")


def test_a_key_is_asked_for_and_stays_in_the_tab(keyed_server: RunningServer, visit: Visit) -> None:
    page = visit(keyed_server, state="key")
    expect(page.locator("#connection")).to_have_text("needs an API key")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    sent(page, PROMPT, max_tokens="3")
    assert KEY not in page.url
    assert KEY not in page.evaluate("JSON.stringify([document.cookie, {...localStorage}, history.state])")
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    assert tokens(page).count() == 0
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#connection")).to_have_attribute("data-state", "key")


def test_a_wrong_key_is_refused_in_the_servers_words(keyed_server: RunningServer, visit: Visit) -> None:
    page = visit(keyed_server, state="key", allowed=REFUSALS)
    page.fill("#key", "another")
    page.press("#key", "Enter")
    expect(page.locator("#connection")).to_have_attribute("data-state", "failed")
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("Incorrect API key provided")
    expect(failure).to_contain_text("invalid_api_key")
    expect(failure).to_contain_text("401")

"""Conversations on the page."""

from __future__ import annotations

from playwright.sync_api import expect

from ..running_server import RunningServer
from .actions import GREEDY, answer, choose_chat, sent, with_key
from .conftest import Visit


def test_a_conversation_goes_on(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    choose_chat(page)
    page.get_by_role("button", name="Add a message").click()
    page.locator("#messages textarea").fill("Be brief.")
    body, _ = sent(page, "the cat", **GREEDY)
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "the cat"},
    ]
    assert body["max_completion_tokens"] == 24
    reply = answer(page)
    plain_reply = server.http.post(
        "/v1/chat/completions", json=body | {"stream": False, "stream_options": None}
    ).json()
    assert reply == plain_reply["choices"][0]["message"]["content"]
    body, _ = sent(page, "the hat", **GREEDY)
    assert body["messages"][2:] == [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "the hat"},
    ]
    # Without a further message the last question is answered again.
    again, _ = sent(page, "", **GREEDY)
    assert again["messages"] == body["messages"]
    page.get_by_role("button", name="Remove this message").first.click()
    assert page.locator("#messages li").count() == 3


def test_of_several_replies_the_chosen_one_is_gone_on_with(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    choose_chat(page)
    sent(page, "the cat", n="2", max_tokens="8", temperature="1", seed="4")
    replies = [answer(page, 0), answer(page, 1)]
    assert replies[0] != replies[1]
    page.get_by_label("Go on with this one").nth(1).check()
    body, _ = sent(page, "the hat")
    assert body["messages"][1] == {"role": "assistant", "content": replies[1]}


def test_without_a_chat_template_chat_is_off_and_says_why(keyed_server: RunningServer, visit: Visit) -> None:
    page = with_key(visit, keyed_server, fragment="#mode=chat")
    expect(page.get_by_role("radio", name="Chat")).to_be_disabled()
    expect(page.get_by_role("radio", name="Prompt")).to_be_checked()
    expect(page.locator("#no-chat")).to_contain_text("no chat template")

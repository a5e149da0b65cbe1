"""The state in the address, and the page's own place."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route, expect

from ..running_server import RunningServer
from .actions import GREEDY, PROMPT, answer, plain, sent, set_parameters
from .conftest import Visit


def fragment(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).fragment).items()}


def test_the_state_is_in_the_address_and_comes_back(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    set_parameters(page, temperature="0.25", stop="\\n", seed="3")
    page.fill("#alternatives-count", "2")
    page.fill("#input", PROMPT + " 100% & #1\nline")
    expect(page).to_have_url(re.compile("line"))
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    assert page.input_value("#input") == PROMPT + " 100% & #1\nline"
    assert page.input_value("#parameter-temperature") == "0.25"
    assert page.input_value("#parameter-stop") == "\\n"
    assert page.input_value("#alternatives-count") == "2"
    assert fragment(page)["stop"] == '["\\n"]'
    assert not any("temperature" in url or "line" in url for url in requests if "#" not in url)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#parameter-seed")).to_have_value("3")


def test_back_and_forward_go_from_run_to_run(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    sent(page, "one", max_tokens="1")
    sent(page, "two", max_tokens="2")
    page.go_back()
    expect(page.locator("#input")).to_have_value("one")
    expect(page.locator("#parameter-max_tokens")).to_have_value("1")
    page.go_forward()
    expect(page.locator("#input")).to_have_value("two")


def test_a_prompt_too_long_for_the_address_is_left_out_and_that_is_said(
    server: RunningServer, visit: Visit
) -> None:
    page = visit(server)
    page.fill("#input", "x" * 30_000)
    expect(page.get_by_role("status")).to_contain_text("Too long for the address")
    assert len(page.url) < 1000


def test_the_page_works_under_a_prefix(server: RunningServer, visit: Visit) -> None:
    """An ingress that serves the page at /some/prefix/ and takes that away."""
    page = visit(server)

    def forward(route: Route) -> None:
        request = route.request
        address = request.url.replace("/some/prefix", "")
        route.fulfill(response=page.request.fetch(address, method=request.method, data=request.post_data))

    page.route(f"{server.url}/some/prefix/**", forward)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    page.goto(f"{server.url}/some/prefix/")
    expect(page.locator("#connection")).to_have_attribute("data-state", "ready")
    sent(page, PROMPT, **GREEDY)
    assert answer(page) == plain(server)
    assert all(path.startswith("/some/prefix/") for path in asked), asked

"""Every parameter of the API, with the server's own ranges."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from basaran_ops.server.openapi import describe
from basaran_ops.settings import Settings

from ..running_server import RunningServer
from .actions import PROMPT, answer, choose_chat, sent
from .conftest import Visit


@pytest.mark.parametrize("mode", ["prompt", "chat"])
def test_each_parameter_of_the_api_has_a_control_with_its_range(
    server: RunningServer, visit: Visit, mode: str
) -> None:
    page = visit(server)
    if mode == "chat":
        choose_chat(page)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    settings = Settings(completion_max_n=5, completion_max_logprobs=7)
    name = "ChatRequest" if mode == "chat" else "CompletionRequest"
    fields = describe(settings)["components"]["schemas"][name]["properties"]
    elsewhere = {"prompt": "#input", "messages": "#add-message", "model": "#model", "stream": "#stream"}
    # The first two are always sent by the page; a template is never taken from a request.
    controlled = fields.keys() - {"stream_options", "return_token_ids", "chat_template"}
    for field in controlled:
        expect(page.locator(elsewhere.get(field, f"[data-parameters~={field}]"))).to_be_visible()
    for field in controlled - elsewhere.keys() - {"seed"}:
        inputs = page.locator(f"[data-parameters~={field}]").locator("input[type=number]")
        for bound, attribute in (("minimum", "min"), ("maximum", "max")):
            if bound in fields[field]:
                assert float(inputs.get_attribute(attribute) or "nan") == fields[field][bound], (field, bound)
    # The context has room for so many.
    for field, most in {"n": "5", "max_tokens": "512", "min_tokens": "512"}.items():
        assert page.locator(f"#parameter-{field}").get_attribute("max") == most
    assert page.locator("#alternatives-count").get_attribute("max") == "7"
    for control in page.locator("#controls .control:visible").all():
        own = (control.get_attribute("data-parameters") or "").split()
        assert set(own) & fields.keys(), f"{own} is no parameter of this endpoint"


def test_all_parameters_reach_the_server_as_they_were_set(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    page.uncheck("#stream")
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    page.check("#parameter-echo")
    page.check("#parameter-ignore_eos")
    page.fill("#alternatives-count", "2")
    body, response = sent(
        page,
        PROMPT,
        temperature="0.5",
        top_p="0.9",
        top_k="40",
        min_p="0.01",
        seed="-3",
        max_tokens="6",
        min_tokens="2",
        stop="\\n\nthe end",
        stop_token_ids="3, 4",
        n="2",
        best_of="3",
        presence_penalty="0.1",
        frequency_penalty="-0.1",
        repetition_penalty="1.1",
        logit_bias='{"5": -100}',
        user="me",
        response_format='{"type": "text"}',
    )
    assert response.status == 200, response.text()
    assert body == {
        "model": "org/tiny",
        "prompt": PROMPT,
        "echo": True,
        "ignore_eos": True,
        "logprobs": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "seed": -3,
        "max_tokens": 6,
        "min_tokens": 2,
        "stop": ["\n", "the end"],
        "stop_token_ids": [3, 4],
        "n": 2,
        "best_of": 3,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100},
        "user": "me",
        "response_format": {"type": "text"},
        "return_token_ids": True,
    }
    assert page.locator(".panel").count() == 2


def test_a_slider_sets_its_parameter(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    slider = page.locator("[data-parameters=temperature] input[type=range]")
    slider.fill("1.5")
    expect(page.locator("#parameter-temperature")).to_have_value("1.5")
    page.fill("#parameter-temperature", "")
    slider.click(position={"x": 40, "y": 5})
    assert 0 < float(page.input_value("#parameter-temperature")) < 0.5
    page.fill("#parameter-temperature", "")
    assert slider.input_value() == "1", "without a value it is where the server's default is"


def test_presets_set_the_parameters_and_are_known_again(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    preset = page.get_by_label("Preset")
    expect(preset).to_have_value("balanced")
    preset.select_option("Seeded")
    body, _ = sent(page, PROMPT)
    first = answer(page)
    assert (body["seed"], body["temperature"]) == (42, 0.8)
    sent(page, PROMPT)
    assert answer(page) == first
    preset.select_option("Greedy")
    assert sent(page, PROMPT)[0]["temperature"] == 0
    page.fill("#parameter-temperature", "0.33")
    expect(preset).to_have_value("")
    page.get_by_role("button", name="Reset all settings").click()
    expect(preset).to_have_value("balanced")
    preset.select_option("Server's defaults")
    body, _ = sent(page, PROMPT)
    assert set(body) == {"model", "prompt", "logprobs", "stream", "stream_options", "return_token_ids"}

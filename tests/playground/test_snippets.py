"""What is copied does what the page did: run for real, by a shell and by Python."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from typing import Any

import openai
import pytest
from playwright.sync_api import Page, expect

from ..running_server import RunningServer
from .actions import answer, choose_chat, sent, set_parameters, with_key
from .conftest import KEY, Visit

NASTY = 'it\'s "the" $HOME `id` $(id) \\n\n\t\'\'\'""" 🦜 ü </script> @file !x %s {y}'


def copied(page: Page, what: str) -> str:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name=f"Copy as {what}").click()
    expect(page.get_by_role("status")).to_contain_text("copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def output(command: list[str], text: str, **environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        command, input=text, env=kept | environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_curl(command: str, **environ: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(output(["sh", "-eu"], command, **environ))
    return body


def by_python(program: str, **environ: str) -> str:
    return output([sys.executable, "-"], program, PYTHONIOENCODING="utf-8", **environ)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_copied_completion_is_the_one_on_the_page(
    server: RunningServer, visit: Visit, stream: bool
) -> None:
    page = visit(server)
    page.set_checked("#stream", stream)
    sent(page, NASTY, temperature="0.9", seed="11", top_k="30", max_tokens="20", stop="\\n\n'")
    shown = answer(page)
    assert by_python(copied(page, "Python")).removesuffix("" if stream else "\n") == shown
    command = copied(page, "curl")
    if stream:
        lines = output(["sh", "-eu"], command).split("\n\n")
        assert lines[-2] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert "".join(event["choices"][0]["text"] for event in events) == shown
    else:
        assert by_curl(command)["choices"][0]["text"] == shown


def test_a_copied_conversation_is_the_one_on_the_page(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    choose_chat(page)
    page.uncheck("#stream")
    set_parameters(page, chat_template_kwargs='{"quiet": true}')
    sent(page, NASTY, temperature="0.9", seed="11", min_p="0.01", max_tokens="20")
    shown = answer(page)
    assert by_curl(copied(page, "curl"))["choices"][0]["message"]["content"] == shown
    assert by_python(copied(page, "Python")) == shown + "\n"
    # With a further message, what is copied has the reply before it, as what would be run.
    page.fill("#input", "next")
    program = copied(page, "Python")
    body, _ = sent(page, "next")
    assert len(body["messages"]) == 3
    assert by_python(program) == answer(page) + "\n"


def test_of_several_choices_python_prints_each(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    sent(page, "the cat", n="2", seed="3", max_tokens="8", logit_bias='{"10": -100}')
    program = copied(page, "Python")
    assert by_python(program) == "".join(f"{answer(page, index)}\n" for index in range(2))


def test_a_key_is_taken_from_the_environment(keyed_server: RunningServer, visit: Visit) -> None:
    page = with_key(visit, keyed_server)
    page.uncheck("#stream")
    sent(page, "the cat", temperature="0", max_tokens="8")
    for what, run in (("curl", by_curl), ("Python", by_python)):
        snippet = copied(page, what)
        assert KEY not in snippet
        assert "OPENAI_API_KEY" in snippet
        told = run(snippet, OPENAI_API_KEY=KEY)
        assert answer(page) in (told if isinstance(told, str) else told["choices"][0]["text"])


def test_the_names_that_openais_client_takes_are_known(visit: Visit, server: RunningServer) -> None:
    page = visit(server)
    named: dict[str, list[str]] = page.evaluate(
        "import(new URL('playground/snippets.js', document.baseURI)).then(({ NAMED }) => NAMED)"
    )
    with openai.OpenAI(api_key="none") as client:
        for path, method in (
            ("v1/completions", client.completions.create),
            ("v1/chat/completions", client.chat.completions.create),
        ):
            assert set(named[path]) <= set(inspect.signature(method).parameters)


def test_where_a_page_may_not_copy_the_text_is_shown(server: RunningServer, visit: Visit) -> None:
    page = visit(server)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.evaluate("document.execCommand = () => false")
    page.get_by_role("button", name="Copy as curl").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    assert dialog.get_by_role("textbox").input_value().startswith("curl ")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()

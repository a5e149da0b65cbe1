from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basaran_ops.text.chat_template import ChatTemplate
from basaran_ops.text.template_limits import RenderLimits
from basaran_ops.text.tokenizer import Tokenizer

from ..running_server import running_server
from ..tiny_models import tiny_tokenizer
from .effort import EFFORT, examples
from .templates import ERRORS, INTERNALS, LOOPS, MEMORY, USUAL, Renders

WORDS = "the chat template cannot render these messages: "


@pytest.fixture(scope="module")
def renders() -> Renders:
    return Renders()


@pytest.mark.parametrize("name", LOOPS)
def test_a_template_that_would_go_on_for_ever_is_stopped(renders: Renders, name: str) -> None:
    told = renders.render(LOOPS[name])
    assert told.startswith(WORDS + ("it ", "RecursionError", "access to attribute")[_kind(told)])


def _kind(told: str) -> int:
    return 1 if "RecursionError" in told else 2 if "access to attribute" in told else 0


@pytest.mark.parametrize("name", MEMORY)
def test_a_template_that_would_take_all_memory_is_stopped(renders: Renders, name: str) -> None:
    told = renders.render(MEMORY[name]).removeprefix(WORDS)
    assert told.startswith(
        ("it makes too much text", "it takes longer", "its numbers", "it formats", "Overf")
    )


@pytest.mark.parametrize("name", INTERNALS)
def test_a_template_has_nothing_of_python_but_values(renders: Renders, name: str) -> None:
    told = renders.render(INTERNALS[name]).removeprefix(WORDS)
    assert told.startswith(("access to attribute", "Chat templates cannot store", "TypeError: no loader"))


@pytest.mark.parametrize("name", ERRORS)
def test_whatever_a_template_raises_is_told_and_in_few_words(renders: Renders, name: str) -> None:
    told = renders.render(ERRORS[name])
    assert told.startswith(WORDS)
    assert len(told) <= len(WORDS) + 1000


def test_templates_that_nobody_wrote_render_or_are_refused(renders: Renders) -> None:
    count = 150 * EFFORT
    good = renders.render_random(range(count))
    assert count / 20 < good < count


TOKENIZER = Tokenizer(tiny_tokenizer())
WHOLE: Mapping[str, Any] = {"add_generation_prompt": True, "continue_final_message": False}


def as_transformers_renders(template: str, messages: list[dict[str, Any]]) -> list[int] | None:
    """By transformers alone, without limits; None for messages that the template refuses."""
    try:
        ids: list[int] = TOKENIZER.hf.apply_chat_template(
            messages, chat_template=template, sanitize_control_tokens=True, return_dict=False, **WHOLE
        )
    except Exception:
        return None
    return ids


def as_we_render(template: str, messages: list[dict[str, Any]]) -> list[int] | None:
    try:
        return ChatTemplate(TOKENIZER, template).encode(messages, variables={}, **WHOLE)
    except ValueError:
        return None


PIECES = st.sampled_from(
    ["hello", " ", "\n", "é😀", "<|end|>", "<think>", "</think>", "<tool>", "%s", "{}", "{{"]
)
TEXTS = st.lists(PIECES, max_size=6).map("".join)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
CONVERSATIONS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1, max_size=6)


@pytest.mark.parametrize("name", USUAL)
def test_what_people_use_renders_as_without_limits(name: str) -> None:
    rendered = 0

    @examples(25)
    @given(CONVERSATIONS)
    def check(messages: list[dict[str, Any]]) -> None:
        nonlocal rendered
        ids = as_we_render(USUAL[name], messages)
        assert ids == as_transformers_renders(USUAL[name], messages)
        rendered += ids is not None

    check()
    assert rendered > 2


@pytest.mark.parametrize("name", USUAL)
def test_a_long_conversation_is_within_the_limits(name: str) -> None:
    turns = [{"role": role, "content": "word " * 60} for role in ("user", "assistant")]
    messages = turns * 500
    ids = as_we_render(USUAL[name], messages)
    assert ids is not None
    assert ids == as_transformers_renders(USUAL[name], messages)


def test_a_limit_is_for_each_render_and_what_is_given_counts_less() -> None:
    limits = RenderLimits(steps=300, size=2000, work=4000, text=2000)
    template = ChatTemplate(TOKENIZER, USUAL["ChatML"], limits)
    for length in (1, 100, 10_000, 100, 1):
        messages = [{"role": "user", "content": "x" * length}] * 3
        assert len(template.encode(messages, variables={}, **WHOLE)) > 3 * length


def test_transformers_renders_for_others_as_before() -> None:
    long = "{{ 'x' * 9000000 }}"
    assert as_we_render(long, [{"role": "user", "content": "hi"}]) is None
    text = TOKENIZER.hf.apply_chat_template(
        [{"role": "user", "content": "hi"}], chat_template=long, tokenize=False
    )
    assert len(text) == 9_000_000


def test_a_server_whose_template_means_harm_says_so_and_serves_others_meanwhile(
    tiny_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "template").write_text(
        "{% if messages[0].content == 'harm' %}" + LOOPS["loops in loops"] + "{% endif %}ok"
    )
    with running_server(
        tmp_path / "log", MODEL=str(tiny_path), MODEL_CHAT_TEMPLATE=str(tmp_path / "template")
    ) as server:
        server.wait_ready()
        answers: list[Any] = []

        def ask(content: str) -> None:
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            answers.append(server.http.post("/v1/chat/completions", json=body))

        harm = threading.Thread(target=ask, args=["harm"])
        harm.start()
        waits = []
        while harm.is_alive():
            started = time.monotonic()
            assert server.complete(prompt="the", max_tokens=1).status_code == 200
            waits.append(time.monotonic() - started)
        harm.join()
        assert (answers[0].status_code, answers[0].json()["error"]["message"]) == (
            400,
            WORDS + "it takes too many steps",
        )
        assert len(waits) > 3
        ask("good")
        assert answers[1].status_code == 200

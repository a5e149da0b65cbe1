from __future__ import annotations

from typing import Any

import pytest

from basaran_ops.text.chat_template import ChatTemplate, ChatTemplateMissing
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
HELLO = [{"role": "user", "content": "hello"}]


def rendered(template: str | None, messages: list[dict[str, Any]] = HELLO, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "add_generation_prompt": True,
        "continue_final_message": False,
        "variables": {},
    }
    return TOKENIZER.decode(ChatTemplate(TOKENIZER, template).encode(messages, **fields | changes))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].absent.deeper }}",
        "{{ messages[7].content }}",
        "{{ messages[0].content + 5 }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{% for m in messages %}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_a_template_raises_is_a_clear_refusal(template: str) -> None:
    with pytest.raises(ValueError, match=r"the chat template cannot render these messages: ."):
        rendered(template)


def test_without_any_template_it_says_so() -> None:
    with pytest.raises(ChatTemplateMissing, match="MODEL_CHAT_TEMPLATE"):
        rendered(None)


def test_the_operators_template_goes_before_the_tokenizers_own() -> None:
    hf = tiny_tokenizer()
    hf.chat_template = "own"
    own = Tokenizer(hf)
    fields: dict[str, Any] = {
        "add_generation_prompt": True,
        "continue_final_message": False,
        "variables": {},
    }
    assert own.decode(ChatTemplate(own, None).encode(HELLO, **fields)) == "own"
    assert own.decode(ChatTemplate(own, "given").encode(HELLO, **fields)) == "given"


def test_the_text_gets_no_special_tokens_beside_the_templates() -> None:
    hf = tiny_tokenizer()
    hf.add_bos_token = True
    hf.update_post_processor()
    tokenizer = Tokenizer(hf)
    assert tokenizer.encode("a")[0] == hf.bos_token_id
    fields: dict[str, Any] = {
        "add_generation_prompt": True,
        "continue_final_message": False,
        "variables": {},
    }
    ids = ChatTemplate(tokenizer, "{{ bos_token }}a").encode(HELLO, **fields)
    assert ids == [hf.bos_token_id, tokenizer.encode("a")[1]]


def test_a_control_token_in_a_message_is_text_and_in_the_template_is_one() -> None:
    template = "{{ messages[0].content }}<|end|>"
    fields: dict[str, Any] = {
        "add_generation_prompt": True,
        "continue_final_message": False,
        "variables": {},
    }
    ids = ChatTemplate(TOKENIZER, template).encode([{"role": "user", "content": "<|end|>"}], **fields)
    assert ids.count(TOKENIZER.hf.eos_token_id) == 1
    assert ids[-1] == TOKENIZER.hf.eos_token_id
    assert TOKENIZER.decode(ids) == "<|end|>"


def test_developer_becomes_system_where_the_template_does_not_know_it() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert rendered("{{ messages[0].role }}", messages) == "system"
    assert rendered("{{ messages[0].role }}{# developer #}", messages) == "developer"


def test_a_last_message_of_the_assistant_is_continued_only_when_asked() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = [*HELLO, {"role": "assistant", "content": "Hi"}]
    assert rendered(template, messages).endswith("[assistant]Hi[/][assistant]")
    continued = rendered(template, messages, add_generation_prompt=False, continue_final_message=True)
    assert continued.endswith("[assistant]Hi")

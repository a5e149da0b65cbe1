"""The `llm` command, with the server's model in its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..running_server import RunningServer
from .plain_answers import GREEDY, PROMPT, chat, completion, texts


@pytest.fixture
def user_path(server: RunningServer, tmp_path: Path) -> Path:
    """Where the command keeps what it knows: a model that converses, and one that completes."""
    shared = {"model_name": "org/tiny", "api_base": f"{server.url}/v1"}
    models = [
        {"model_id": "tiny-chat", **shared},
        {"model_id": "tiny-text", "completion": True, **shared},
    ]
    # Any JSON is YAML.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    return tmp_path


def llm(user_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env=os.environ | {"LLM_USER_PATH": str(user_path), "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    # Not as text, which would change a carriage return that the model wrote.
    return done.stdout.decode()


def prompt(user_path: Path, model: str, *arguments: str) -> str:
    options = [part for name, value in GREEDY.items() for part in ("-o", name, str(value))]
    return llm(user_path, "prompt", "-m", model, *options, *arguments, PROMPT)


def last_logged(user_path: Path) -> dict[str, Any]:
    (entry,) = json.loads(llm(user_path, "logs", "--json", "-n", "1"))
    logged: dict[str, Any] = entry
    return logged


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_prompt_is_answered_and_its_usage_logged(
    server: RunningServer, user_path: Path, stream: bool
) -> None:
    plain = chat(server, messages=[{"role": "user", "content": PROMPT}], **GREEDY)
    printed = prompt(user_path, "tiny-chat", *([] if stream else ["--no-stream"]))
    assert printed == texts(plain)[0] + "\n"
    logged = last_logged(user_path)
    assert logged["response"] == texts(plain)[0]
    assert logged["input_tokens"] == plain["usage"]["prompt_tokens"]
    assert logged["output_tokens"] == plain["usage"]["completion_tokens"]


def test_a_system_prompt_and_a_continued_conversation_reach_the_model(
    server: RunningServer, user_path: Path
) -> None:
    first = prompt(user_path, "tiny-chat", "--system", "be brief").removesuffix("\n")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}]
    assert first == texts(chat(server, messages=messages, **GREEDY))[0]
    second = prompt(user_path, "tiny-chat", "--continue").removesuffix("\n")
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": PROMPT}]
    assert second == texts(chat(server, messages=messages, **GREEDY))[0]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_model_that_completes_is_asked_for_a_completion(
    server: RunningServer, user_path: Path, stream: bool
) -> None:
    printed = prompt(user_path, "tiny-text", *([] if stream else ["--no-stream"]))
    assert printed == texts(completion(server, **GREEDY))[0] + "\n"

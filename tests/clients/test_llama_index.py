"""LlamaIndex's OpenAILike: completions and conversations, whole and streamed, waiting and not."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from ..running_server import RunningServer
from .plain_answers import GREEDY, PROMPT, QUESTION, chat, completion, counts, texts
from .scripts import APART, findings, installed

ASK = Path(__file__).parent / "apart" / "ask_llama_index.py"


@pytest.fixture(scope="module")
def found(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script got, by the name of what it asked."""
    directory = tmp_path_factory.mktemp("llama-index")
    return findings(
        directory,
        [installed(APART), ASK, server.url],
        ASKED=json.dumps({"PROMPT": PROMPT, "QUESTION": QUESTION, "GREEDY": GREEDY}),
        LLAMA_INDEX_CACHE_DIR=str(directory / "cache"),
    )


def the(found: dict[str, Any], name: str) -> Any:
    assert "failed" not in found[name], found[name]["failed"]
    return found[name]


@pytest.mark.parametrize("name", ["complete", "acomplete"])
def test_a_completion_is_the_plain_one(server: RunningServer, found: dict[str, Any], name: str) -> None:
    plain = completion(server, **GREEDY)
    answer = the(found, name)
    assert answer["text"] == texts(plain)[0]
    assert answer["raw"]["choices"][0]["finish_reason"] == "length"
    assert counts(answer["raw"]["usage"]) == counts(plain["usage"])


@pytest.mark.parametrize("name", ["chat", "achat"])
def test_an_answer_is_the_plain_one(server: RunningServer, found: dict[str, Any], name: str) -> None:
    plain = chat(server, **GREEDY)
    answer = the(found, name)
    assert answer["text"] == texts(plain)[0]
    assert answer["raw"]["choices"][0]["finish_reason"] == "length"
    assert counts(answer["raw"]["usage"]) == counts(plain["usage"])


@pytest.mark.parametrize("name", ["stream_complete", "astream_complete", "stream_chat", "astream_chat"])
def test_the_pieces_of_a_stream_grow_into_the_plain_answer(
    server: RunningServer, found: dict[str, Any], name: str
) -> None:
    plain = chat(server, **GREEDY) if "chat" in name else completion(server, **GREEDY)
    parts = the(found, name)
    assert len(parts) > 3
    assert parts[-1]["text"] == texts(plain)[0]
    assert "".join(part["delta"] or "" for part in parts) == texts(plain)[0]
    for before, after in itertools.pairwise(parts):
        assert after["text"] == before["text"] + (after["delta"] or "")

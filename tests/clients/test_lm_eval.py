"""lm-eval through the API finds of the real model what it finds of the same model in its own process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..running_server import RunningServer, running_server
from .scripts import findings

# Short, so that the long text needs several windows. lm-eval takes one off for the token that it has the
# server generate, and one more for what each window begins with.
CONTEXT = 130
QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "Berlin", "a kind of cheese"], "answer": 0},
    {"question": "Water is made of hydrogen and", "choices": ["gold", "oxygen"], "answer": 1},
    {"question": "Two and two make", "choices": ["three", "four", "a very large number"], "answer": 1},
    {"question": "Der Himmel über Köln ist", "choices": ["blau", "größer als 😀", "naïve"], "answer": 0},
    # As long as the context: the beginning is cut off, by both alike.
    {"question": "la " * 140 + "la", "choices": ["la", "stop"], "answer": 0},
]
LAST_WORDS = [
    {"text": "The sun rises in the", "last": "east"},
    {"text": "Once upon a", "last": "time"},
    {"text": "To be, or not to", "last": "be, that is the question"},
    {"text": "My favourite colour is", "last": "ultramarine"},
]
LONG_TEXTS = [
    {"page": "The cat sat on the mat. " * 3 + "Then it went to Zürich, which is in Switzerland. " * 12},
    {"page": "Short."},
]
BEGINNINGS = [
    {"beginning": "The first three planets are Mercury,", "end": " Venus"},
    {"beginning": "Roses are red, violets are", "end": " blue"},
    {"beginning": "1, 2, 3, 4,", "end": " 5"},
]
TASKS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "choosing": (
        QUESTIONS,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
    ),
    "last_word": (
        LAST_WORDS,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{last}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
    ),
    "long_text": (
        LONG_TEXTS,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    ),
    "writing": (
        BEGINNINGS,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{beginning}}",
            "doc_to_target": "{{end}}",
            # More stop strings than OpenAI allows.
            "generation_kwargs": {
                "until": ["\n\n", "Question:", "</s>", "###", "Answer:"],
                "max_gen_toks": 12,
                "do_sample": False,
            },
            "metric_list": [{"metric": "exact_match"}],
        },
    ),
}
THROUGH_THE_API = ["huggingface", "remote", "text", "concurrent"]


@pytest.fixture(scope="module")
def server(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        tmp_path_factory.mktemp("lm-eval") / "log",
        MODEL=str(default_model_path),
        MODEL_DTYPE="float32",
        ENGINE_SLOTS="4",
        ENGINE_CONTEXT_LENGTH=str(CONTEXT),
    ) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def found(
    server: RunningServer, default_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Of each way to the model, of each task: what lm-eval found."""
    directory = tmp_path_factory.mktemp("tasks")
    for name, (documents, task) in TASKS.items():
        write_task(directory, name, documents, task)
    model = str(default_model_path)
    api: dict[str, Any] = {
        "model": model,
        "base_url": f"{server.url}/v1/completions",
        "max_length": CONTEXT,
        "max_retries": 1,
        "batch_size": 8,
    }
    ways = {
        "itself": (
            "hf",
            {"pretrained": model, "dtype": "float32", "device": "cpu", "max_length": CONTEXT - 2},
        ),
        "huggingface": ("local-completions", api | {"tokenizer_backend": "huggingface"}),
        "remote": ("local-completions", api | {"tokenizer_backend": "remote"}),
        "text": (
            "local-completions",
            api | {"tokenizer_backend": "huggingface", "tokenized_requests": False},
        ),
        "concurrent": (
            "local-completions",
            api | {"tokenizer_backend": "remote", "num_concurrent": 3, "batch_size": 2},
        ),
    }
    return findings(
        directory,
        [sys.executable, Path(__file__).with_name("ask_lm_eval.py"), json.dumps(ways), directory],
        HF_HOME=str(directory / "home"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        # Two threads wait for each other many times as long where the cores are busy.
        OMP_NUM_THREADS="1",
    )


def write_task(directory: Path, name: str, documents: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = directory / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    whole = task | {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    # Any JSON is YAML.
    (directory / f"{name}.yaml").write_text(json.dumps(whole))


@pytest.mark.parametrize("task", ["choosing", "last_word"])
@pytest.mark.parametrize("way", THROUGH_THE_API)
def test_each_answer_is_as_likely_as_the_model_itself_says_and_greedy_where_it_says_so(
    found: dict[str, Any], way: str, task: str
) -> None:
    expected, answers = found["itself"]["answers"][task], found[way]["answers"][task]
    assert len(answers) == len(TASKS[task][0])
    greedy = []
    for of_document, expected_of_document in zip(answers, expected, strict=True):
        for (logprob, is_greedy), (expected_logprob, expected_greedy) in zip(
            of_document, expected_of_document, strict=True
        ):
            assert logprob == pytest.approx(expected_logprob, abs=1e-4)
            assert is_greedy is expected_greedy
            greedy.append(is_greedy)
    assert set(greedy) == {True, False}, "too easy: an answer of either kind must be among them"


@pytest.mark.parametrize("way", THROUGH_THE_API)
def test_a_long_text_is_as_likely_in_its_windows(found: dict[str, Any], way: str) -> None:
    expected, answers = found["itself"]["answers"]["long_text"], found[way]["answers"]["long_text"]
    assert len(answers) == len(LONG_TEXTS)
    for answer, expected_answer in zip(answers, expected, strict=True):
        # A sum over hundreds of tokens, as near as float32 has it.
        assert answer == [pytest.approx(expected_answer[0], rel=3e-6)]


@pytest.mark.parametrize("way", THROUGH_THE_API)
def test_the_model_writes_what_it_writes_by_itself(found: dict[str, Any], way: str) -> None:
    assert found[way]["answers"]["writing"] == found["itself"]["answers"]["writing"]


@pytest.mark.parametrize("way", THROUGH_THE_API)
def test_each_score_is_the_same(found: dict[str, Any], way: str) -> None:
    for task, metrics in found["itself"]["metrics"].items():
        assert metrics, task
        assert found[way]["metrics"][task] == pytest.approx(metrics, rel=1e-4)

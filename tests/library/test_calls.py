"""What a call of the library takes and yields."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from basaran_ops import ChoiceDict, LibraryModel, load_model, reduce_choice
from basaran_ops.errors import (
    BasaranError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
)
from basaran_ops.settings import InvalidSettings

from ..number_words import words
from ..tiny_models import VOCAB, generate, save_tiny, tiny_tokenizer

PROMPT = "the cat 😀 sat"
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


def by_index(pieces: list[ChoiceDict]) -> dict[int, ChoiceDict]:
    """The whole choices of a call."""
    return {
        index: reduce_choice(piece for piece in pieces if piece["index"] == index)
        for index in sorted({piece["index"] for piece in pieces})
    }


def text_of(pieces: list[ChoiceDict]) -> str:
    (whole,) = by_index(pieces).values()
    return whole["text"]


@pytest.fixture(scope="module")
def alone(long_path: Path) -> Callable[[str], str]:
    """What generate() says after a prompt."""
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(long_path), tiny_tokenizer()
    return lambda prompt: tokenizer.decode(
        generate(plain, tuple(tokenizer.encode(prompt)), 12), skip_special_tokens=True
    )


def test_a_call_yields_basarans_dicts_and_the_last_has_a_reason(model: LibraryModel) -> None:
    pieces = list(model(PROMPT, **GREEDY))
    assert len(pieces) > 3
    assert {tuple(piece) for piece in pieces} == {("text", "index", "logprobs", "finish_reason")}
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert {(piece["index"], piece["logprobs"]) for piece in pieces} == {(0, None)}


def test_a_greedy_text_is_what_generate_says(model: LibraryModel, alone: Callable[[str], str]) -> None:
    assert text_of(list(model(PROMPT, **GREEDY))) == alone(PROMPT)


def test_basarans_parameters_go_by_place_too(model: LibraryModel) -> None:
    by_place = list(model(PROMPT, 2, 5, 0, 1.0, 2, 1, True))
    by_name = list(
        model(PROMPT, min_tokens=2, max_tokens=5, temperature=0, top_p=1.0, n=2, logprobs=1, echo=True)
    )
    assert by_index(by_place) == by_index(by_name)
    assert set(by_index(by_place)) == {0, 1}


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: ids,
        tuple,
        torch.tensor,
        np.array,
        lambda ids: [np.int64(token) for token in ids],
        lambda ids: torch.tensor([ids]),
    ],
    ids=["list", "tuple", "tensor", "array", "numbers", "matrix"],
)
def test_a_prompt_may_be_token_ids_in_any_form(
    model: LibraryModel, form: Callable[[list[int]], Any], alone: Callable[[str], str]
) -> None:
    assert text_of(list(model(form(model.tokenize(PROMPT).tolist()), **GREEDY))) == alone(PROMPT)


def test_several_prompts_are_numbered_as_in_the_api(model: LibraryModel, alone: Callable[[str], str]) -> None:
    prompts = ["the cat", "a hat", "the rat"]
    whole = by_index(list(model(prompts, n=2, **GREEDY)))
    assert [whole[i]["text"] for i in range(6)] == [alone(p) for p in prompts for _ in range(2)]
    batch = torch.stack([model.tokenize("the cat"), model.tokenize("the rat")])
    assert [c["text"] for c in by_index(list(model(batch, **GREEDY))).values()] == [
        alone("the cat"),
        alone("the rat"),
    ]


@pytest.mark.parametrize("nothing", [None, "", torch.tensor([], dtype=torch.long)], ids=str)
def test_without_a_prompt_the_model_begins(model: LibraryModel, nothing: Any) -> None:
    begun = text_of(list(model([1], **GREEDY)))
    assert text_of(list(model(nothing, **GREEDY))) == begun


def test_logprobs_are_the_models_own(model: LibraryModel, long_path: Path) -> None:
    ids = model.tokenize(PROMPT)
    whole = reduce_choice(
        model(PROMPT, max_tokens=5, logprobs=3, echo=True, temperature=0, return_token_ids=True)
    )
    told = whole["logprobs"]
    assert told is not None
    plain = AutoModelForCausalLM.from_pretrained(long_path)
    everything = ids.tolist() + whole["token_ids"]
    with torch.inference_mode():
        expected = torch.log_softmax(plain(torch.tensor([everything])).logits[0], dim=-1)
    assert told["token_logprobs"][0] is None
    assert len(told["tokens"]) == len(everything) == len(ids) + 5
    for place in range(1, len(everything)):
        token_logprob, top = told["token_logprobs"][place], told["top_logprobs"][place]
        assert token_logprob is not None
        assert top is not None
        assert token_logprob == pytest.approx(expected[place - 1, everything[place]].item(), abs=1e-3)
        assert max(top.values()) == pytest.approx(expected[place - 1].max().item(), abs=1e-3)
    assert "".join(told["tokens"]) == whole["text"]
    assert told["text_offset"] == [len("".join(told["tokens"][:i])) for i in range(len(told["tokens"]))]


def test_a_text_is_scored_without_generating(model: LibraryModel) -> None:
    (piece,) = model(PROMPT, max_tokens=0, echo=True, logprobs=0)
    told = piece["logprobs"]
    assert told is not None
    assert (piece["text"], piece["finish_reason"]) == (PROMPT, "length")
    assert all(value is not None and -math.inf < value < 0 for value in told["token_logprobs"][1:])
    assert [len(top or {}) for top in told["top_logprobs"]] == [0] + [1] * (len(told["tokens"]) - 1)


def test_more_likeliest_tokens_than_there_are_is_all_of_them(model: LibraryModel) -> None:
    (piece,) = model("the cat", max_tokens=1, logprobs=VOCAB + 5, n=1)
    assert piece["logprobs"] is not None
    (top,) = piece["logprobs"]["top_logprobs"]
    assert top is not None
    # Tokens that are pieces of characters have one text among them.
    assert len(top) > VOCAB / 2


def test_as_many_choices_as_one_likes(model: LibraryModel) -> None:
    whole = by_index(list(model("the cat", n=40, max_tokens=2, seed=1)))
    assert len(whole) == 40
    assert len({choice["text"] for choice in whole.values()}) > 10


def test_the_best_of_several_come_whole_and_are_the_likeliest(model: LibraryModel) -> None:
    fields: dict[str, Any] = {"max_tokens": 6, "logprobs": 0, "seed": 7}
    all_of_them = by_index(list(model("the cat", n=5, **fields)))

    def mean(choice: ChoiceDict) -> float:
        assert choice["logprobs"] is not None
        logprobs = [value for value in choice["logprobs"]["token_logprobs"] if value is not None]
        return sum(logprobs) / len(logprobs)

    ranked = sorted(all_of_them.values(), key=mean, reverse=True)
    best = list(model("the cat", n=2, best_of=5, **fields))
    assert [piece["index"] for piece in best] == [0, 1]
    assert [piece["text"] for piece in best] == [choice["text"] for choice in ranked[:2]]


def test_a_seed_gives_the_same_text_again(model: LibraryModel) -> None:
    texts = [text_of(list(model("the cat", max_tokens=10, seed=seed))) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("of", [lambda s: s, lambda s: [s], lambda s: ("no such text", s)])
def test_a_stop_string_ends_a_text_before_it(model: LibraryModel, of: Callable[[str], Any]) -> None:
    whole = text_of(list(model("the cat", **GREEDY)))
    stop = whole[3:5]
    choice = reduce_choice(model("the cat", stop=of(stop), **GREEDY))
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_a_bias_goes_by_token_id(model: LibraryModel) -> None:
    (token,) = model.tokenizer.encode("x")
    assert text_of(list(model("the cat", max_tokens=4, logit_bias={token: 100}))) == "xxxx"


@pytest.mark.parametrize(
    "wished",
    [
        {"top_k": 1},
        {"min_p": 1.0},
        {"top_p": 0},
        {"top_p": 1e-6, "top_k": -1},
        {"temperature": np.float32(0)},
    ],
    ids=str,
)
def test_every_way_to_be_greedy_is(
    model: LibraryModel, wished: dict[str, Any], alone: Callable[[str], str]
) -> None:
    assert text_of(list(model("the cat", max_tokens=12, **wished))) == alone("the cat")


@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2.0}, {"repetition_penalty": 5}], ids=str
)
def test_a_penalty_changes_the_text(model: LibraryModel, penalty: dict[str, Any]) -> None:
    bias = {"logit_bias": {model.tokenizer.encode("x")[0]: 3.5}, "temperature": 0, "max_tokens": 40}
    assert text_of(list(model("the cat", **bias, **penalty))) != text_of(list(model("the cat", **bias)))


def test_a_stop_token_ends_unless_there_must_be_more(model: LibraryModel) -> None:
    ids = reduce_choice(model("the cat", return_token_ids=True, **GREEDY))["token_ids"]
    ended = reduce_choice(model("the cat", stop_token_ids=[ids[2]], return_token_ids=True, **GREEDY))
    assert ended["finish_reason"] == "stop"
    assert ended["token_ids"] == ids[:3]
    longer = reduce_choice(
        model("the cat", stop_token_ids=[ids[2]], min_tokens=8, return_token_ids=True, **GREEDY)
    )
    assert len(longer["token_ids"]) >= 8


def test_without_a_limit_a_text_may_fill_the_context(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, eos=None, max_position_embeddings=64)
    with load_model(path, engine_threads=1) as model:
        stream = model("the cat", max_tokens=None)
        assert reduce_choice(stream)["finish_reason"] == "length"
        assert stream.usage.prompt_tokens + stream.usage.completion_tokens == 64
        with pytest.raises(ContextLengthExceeded) as raised:
            model("the cat", max_tokens=64)
        assert raised.value.param == "max_tokens"
        with pytest.raises(ContextLengthExceeded) as raised:
            model("the cat " * 40)
        assert raised.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": b"bytes"}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["text", [1]]}, "prompt"),
        ({"prompt": [VOCAB]}, "prompt"),
        ({"prompt": torch.tensor([1.5])}, "prompt"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ({"logit_bias": {5: 101}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {VOCAB: 1}}, "logit_bias"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"suffix": "the end"}, "suffix"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
    ids=str,
)
def test_what_is_not_allowed_is_refused_at_the_call_by_the_arguments_name(
    model: LibraryModel, fields: dict[str, Any], param: str
) -> None:
    before = model.pool.status().outstanding
    with pytest.raises(InvalidRequest) as raised:
        model(**{"prompt": "the cat"} | fields)
    assert raised.value.param == param
    assert param in str(raised.value)
    assert model.pool.status().outstanding == before


def test_an_unknown_argument_is_a_type_error_that_names_the_nearest(model: LibraryModel) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'max_new_tokens'; did you mean 'max_tokens'"):
        model("the cat", max_new_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unexpected argument 'echo'$"):
        model.chat([{"role": "user", "content": "x"}], echo=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unexpected argument 'functions'$"):
        model.chat([{"role": "user", "content": "x"}], functions=[])  # type: ignore[call-arg]


@pytest.mark.parametrize("call", [{"prompt": "\ud800"}, {"prompt": ["a", "b\udfff"]}])
def test_half_a_surrogate_pair_is_no_text(model: LibraryModel, call: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as raised:
        model(**call)
    assert raised.value.param == "prompt"


def test_a_model_is_not_copied(model: LibraryModel) -> None:
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="load it in each process"):
            copied(model)


def test_an_unknown_adapter_is_refused_by_its_name(model: LibraryModel) -> None:
    with pytest.raises(ModelNotFound, match="'french'") as raised:
        model("the cat", adapter="french")
    assert raised.value.param == "adapter"


QUESTION = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat?"}]
RENDERED = "system: be brief\nuser: the cat?\n"


def test_a_conversation_is_answered_as_its_rendered_text_is(model: LibraryModel) -> None:
    answer = text_of(list(model.chat(QUESTION, **GREEDY)))
    assert answer == text_of(list(model(RENDERED + "assistant: ", **GREEDY)))


def test_a_last_message_of_the_assistants_is_continued_when_asked(model: LibraryModel) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "it is a"}]
    told = text_of(list(model.chat(begun, continue_final_message=True, **GREEDY)))
    assert told == text_of(list(model(RENDERED + "assistant: it is a", **GREEDY)))


def test_the_template_gets_its_variables_and_may_open_no_answer(model: LibraryModel) -> None:
    told = text_of(list(model.chat(QUESTION, chat_template_kwargs={"opening": "cat"}, **GREEDY)))
    assert told == text_of(list(model(RENDERED + "cat: ", **GREEDY)))
    bare = text_of(list(model.chat(QUESTION, add_generation_prompt=False, **GREEDY)))
    assert bare == text_of(list(model(RENDERED, **GREEDY)))


def test_the_offsets_of_an_answers_logprobs_begin_with_the_answer(model: LibraryModel) -> None:
    answer = reduce_choice(model.chat(QUESTION, logprobs=2, **GREEDY))
    told = answer["logprobs"]
    assert told is not None
    assert "".join(told["tokens"]) == answer["text"]
    assert told["text_offset"][0] == 0
    assert len(told["top_logprobs"][0] or {}) >= 2
    silent = reduce_choice(model.chat(QUESTION, **GREEDY))
    assert silent == {**answer, "logprobs": None}


def test_several_answers_are_numbered(model: LibraryModel) -> None:
    assert len(by_index(list(model.chat(QUESTION, n=3, max_tokens=3, seed=1)))) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 20000}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": "two"}, "logprobs"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"chat_template_kwargs": {"tokenize": False}}, "messages"),
        ({"temperature": 3}, "temperature"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_conversation_that_is_not_allowed_is_refused_by_name(
    model: LibraryModel, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        model.chat(**{"messages": QUESTION} | fields)
    assert raised.value.param == param


def test_a_model_without_a_template_says_so(long_path: Path) -> None:
    with load_model(long_path, engine_slots=1, engine_threads=1) as model:
        with pytest.raises(InvalidRequest) as raised:
            model.chat(QUESTION)
        assert raised.value.code == "chat_template_missing"


def test_what_a_call_used_is_told(model: LibraryModel) -> None:
    with model("the cat", max_tokens=5, n=2) as stream:
        list(stream)
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (
        len(model.tokenize("the cat")),
        10,
    )


def test_a_model_tells_what_it_is(model: LibraryModel) -> None:
    assert model.device == "cpu"
    assert model.info.context_length == 8192
    assert (model.info.slots, model.info.vocab_size) == (8, VOCAB)
    assert "ready on cpu" in repr(model)
    ids = model.tokenize(PROMPT)
    assert ids.dtype == torch.long
    assert ids.dim() == 1
    assert model.tokenizer.decode(ids.tolist()) == PROMPT


@pytest.mark.parametrize(
    "settings",
    [
        {"engine_slots": 0},
        {"port": 80},
        {"server_queue_limit": 3},
        {"engine_replicas": 2},
    ],
    ids=str,
)
def test_a_setting_that_means_nothing_is_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InvalidSettings, match=f"(?i){name}"):
        load_model(tmp_path, **settings)


def test_a_setting_that_there_is_not_is_a_type_error_that_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'engine_slotz'; did you mean 'engine_slots'"):
        load_model(tmp_path, engine_slotz=3)


def test_a_template_that_is_not_there_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"model_chat_template: .*No such file"):
        load_model(tmp_path, model_chat_template=str(tmp_path / "none"))


def test_a_model_that_is_not_there_is_told_and_leaves_no_thread(tmp_path: Path) -> None:
    # That nothing is left behind every test asserts.
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_model(tmp_path)
    assert issubclass(ModelLoadError, BasaranError)


def test_many_slots_ask_for_nothing_that_is_the_servers(long_path: Path) -> None:
    with load_model(
        long_path, engine_slots=1500, engine_token_budget=1500, engine_context_length=16, engine_threads=1
    ) as model:
        assert text_of(list(model("the", max_tokens=2, temperature=0)))


def test_the_text_between_two_others_is_generated(tmp_path: Path) -> None:
    marks = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    with load_model(save_tiny(tmp_path, eos=None, special=marks), engine_threads=1) as model:
        ids = model.tokenize("the cat").tolist(), model.tokenize(" the mat").tolist()
        by_hand = [2, *ids[0], 3, *ids[1], 4]
        filled = text_of(list(model("the cat", suffix=" the mat", **GREEDY)))
        assert filled == text_of(list(model(by_hand, **GREEDY)))
        assert filled != text_of(list(model("the cat", **GREEDY)))


def test_an_encoder_decoder_model_is_called_the_same_way(numbers_path: Path) -> None:
    with load_model(numbers_path, model_dtype="float32", engine_threads=1) as model:
        choice = reduce_choice(model("42", max_tokens=30, temperature=0, logprobs=1))
    assert (choice["text"], choice["finish_reason"]) == (words(42), "stop")
    assert choice["logprobs"] is not None
    assert "".join(choice["logprobs"]["tokens"]) == words(42)

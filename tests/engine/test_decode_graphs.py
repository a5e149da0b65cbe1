"""Captured decode steps. In the place of CUDA's graphs is a backend which runs the captured function again,
on the tensors that it was captured with: what a graph does, numbers included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from basaran_ops.engine import capture, decode_graphs, packed_runner
from basaran_ops.engine.capture import CannotCapture, CudaGraphs, Replay, SameEveryTime, backend_for
from basaran_ops.engine.decode_graphs import doubled
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.flash import FlashBackend
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.runners import choose_runner
from basaran_ops.engine.sequence import Batch, Chunk, Sequence
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.settings import Settings

from ..architectures import tiny_architecture
from ..tiny_models import VOCAB, generate, tiny_model
from .engines import drain, engine_for
from .test_flash import flash_attn_with_kvcache


class Stored:
    """A backend without a GPU. A result is written into the one tensor that the capture returned."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.captured: list[tuple[int, ...]] = []
        """The shape of each captured result, in order."""
        self.replays: list[int] = []
        """Which was replayed, in order."""
        self._fails_at = fails_at

    def capture(self, function: Replay) -> Replay:
        number = len(self.captured)
        if number == self._fails_at:
            raise CannotCapture("operation not permitted when stream is capturing")
        output = function().clone()
        self.captured.append(tuple(output.shape))

        def replay() -> torch.Tensor:
            self.replays.append(number)
            return output.copy_(function())

        return replay


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Stored:
    return put(Stored(), monkeypatch)


def put(backend: Stored, monkeypatch: pytest.MonkeyPatch) -> Stored:
    monkeypatch.setattr(packed_runner, "backend_for", lambda devices: backend)
    return backend


def engine_of(model: PreTrainedModel, **settings: Any) -> Engine:
    return engine_for(
        model, runner="packed", **{"engine_compile": False, "engine_speculate": False} | settings
    )


def runner_of(engine: Engine) -> PackedRunner:
    assert isinstance(engine._runner, PackedRunner)
    return engine._runner


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple((31 * n + 7 * p) % VOCAB for p in range(3 + 5 * n % 23)) for n in range(count)]


def greedy(engine: Engine, given: list[tuple[int, ...]], limit: int) -> list[list[int]]:
    """The tokens of each prompt; those in odd places end early, and leave holes."""
    for number, prompt in enumerate(given):
        tokens = limit // 2 if number % 2 else limit
        engine.add(number, prompt, SamplingParams(max_tokens=tokens, temperature=0), None)
    got = drain(engine)
    return [got[number] for number in range(len(given))]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "mistral", "gemma2"])
def test_greedy_tokens_equal_generate_alone(name: str, stored: Stored) -> None:
    model = tiny_model(name)
    given = prompts(11)
    expected = [generate(model, prompt, 8 if n % 2 else 16) for n, prompt in enumerate(given)]
    assert greedy(engine_of(model), given, 16) == expected
    assert len({stored.captured[number][1] for number in stored.replays}) > 2, "few buckets were used"


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_a_replay_gives_the_numbers_of_the_step_itself(name: str, rows: int, stored: Stored) -> None:
    runner = runner_of(engine_of(tiny_model(name)))
    cache = runner._attention.cache
    assert cache is not None
    # Slots with holes between them, each with a text of its own.
    slots = [0, 1, 2, 3, 4, 5, 6, 7] if rows == 8 else [7, 0, 5, 2, 3, 6, 1][:rows]
    sequences = [Sequence(n, prompt, SamplingParams(), None) for n, prompt in enumerate(prompts(rows))]
    for slot, sequence in zip(slots, sequences, strict=True):
        runner.run(Batch((), (Chunk(sequence, slot, 0, sequence.prompt_length),)))
        sequence.append(slot + 11)
    chunks = [Chunk(s, slot, s.prompt_length, 1) for slot, s in zip(slots, sequences, strict=True)]
    batch = Batch(tuple(sorted(chunks, key=lambda chunk: chunk.slot)), ())
    before = {layer: keys.clone() for layer, keys in cache.keys.items()}

    replayed = runner.run(batch).clone()
    after_replay = {layer: keys.clone() for layer, keys in cache.keys.items()}
    assert stored.replays[-1:] == [stored.captured.index((1, 1 << (rows - 1).bit_length(), VOCAB))]
    for layer, keys in before.items():
        cache.keys[layer].copy_(keys)
    graphs, runner._graphs = runner._graphs, None
    itself = runner.run(batch)
    torch.testing.assert_close(replayed, itself, atol=1e-4, rtol=1e-4)
    for layer, keys in after_replay.items():
        # Where it wrote, and nowhere else: rows too many have no place of their own.
        torch.testing.assert_close(keys, cache.keys[layer], atol=1e-4, rtol=1e-4)
        changed = (keys != before[layer]).any(dim=-1).any(dim=1).nonzero().tolist()
        assert changed == [[chunk.slot, chunk.start] for chunk in batch.decoding]
    assert graphs is not None


def test_the_largest_is_captured_first_and_there_is_one_for_each_number_of_rows(stored: Stored) -> None:
    engine_of(tiny_model("llama"), slots=6)
    assert stored.captured == [(1, rows, VOCAB) for rows in (6, 4, 2, 1)]


def test_there_is_one_for_each_number_of_keys_too(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graphs, "FEWEST_KEYS", 16)
    model = tiny_model("llama")
    engine = engine_of(model, slots=2, engine_context_length=100)
    assert len(stored.captured) == 2 * len([16, 32, 64, 100])
    stored.replays.clear()
    assert greedy(engine, [tuple(range(10))], 60) == [generate(model, tuple(range(10)), 60)]
    assert list(dict.fromkeys(stored.replays)) == [7, 6, 5, 4], "from few keys to many"


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 8, [1, 2, 4, 8]), (1, 6, [1, 2, 4, 6]), (1, 1, [1]), (512, 300, [300]), (512, 1024, [512, 1024])],
)
def test_buckets_double_up_to_the_last(first: int, last: int, expected: list[int]) -> None:
    assert doubled(first, last) == expected


def test_only_steps_in_which_every_sequence_has_one_token_are_replayed(stored: Stored) -> None:
    engine = engine_of(tiny_model("llama"), token_budget=8)
    stored.replays.clear()
    for number, prompt in enumerate(prompts(4)):
        engine.add(number, prompt, SamplingParams(max_tokens=6, temperature=0), None)
    decoding = 0
    while engine.has_work:
        engine.step()
        decoding += engine.stats.batch_size == engine.stats.batch_tokens
    assert len(stored.replays) == decoding > 0


def test_steps_that_check_drafts_run_as_they_are(stored: Stored) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    engine = engine_of(model, engine_speculate=True)
    stored.replays.clear()
    prompt = (5, 6, 7, 8) * 6
    assert greedy(engine, [prompt], 60) == [generate(model, prompt, 60)]
    assert engine.stats.drafted_tokens, "nothing was guessed"
    assert 0 < len(stored.replays) < engine.stats.step - 1


def test_a_prompt_of_one_token_that_wants_scores_alone_is_no_decode(stored: Stored) -> None:
    engine = engine_of(tiny_model("llama"))
    engine.add(0, (5,), SamplingParams(max_tokens=0), None)
    assert drain(engine) == {0: []}


def test_texts_beyond_the_largest_bucket_run_as_they_are(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "MOST_KEYS", 32)
    model = tiny_model("llama")
    engine = engine_of(model)
    stored.replays.clear()
    prompt = tuple(range(20))
    assert greedy(engine, [prompt], 40) == [generate(model, prompt, 40)]
    # The first token comes with the prompt; a text of 32 tokens is the last that fits.
    assert len(stored.replays) == 32 - 20


def test_one_long_text_does_not_make_many_short_ones_read_as_much(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "FEWEST_KEYS", 16)
    # How long steps took decides nothing: the long prompt is read before the short texts end.
    engine = engine_of(tiny_model("llama"), token_budget=256, engine_prefill_stretch=1e9)
    for number in range(7):
        engine.add(number, (number, 3), SamplingParams(max_tokens=12, temperature=0), None)
    stored.replays.clear()
    engine.step()
    engine.step()
    assert len(stored.replays) == 1
    engine.add(7, tuple(range(200)), SamplingParams(max_tokens=9, temperature=0), None)
    while engine.stats.batch_tokens != 8:
        stored.replays.clear()
        engine.step()
    assert engine.stats.batch_size == 8
    assert stored.replays == []


def test_with_flash_attention_one_graph_reads_as_many_keys_as_there_are(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(attention: Any, check: Callable[[], None]) -> None:
        attention.backend = FlashBackend(flash_attn_with_kvcache)

    monkeypatch.setattr(packed_runner, "use_flash", use)
    monkeypatch.setattr(decode_graphs, "FEWEST_KEYS", 16)
    monkeypatch.setattr(decode_graphs, "SameEveryTime", anything)
    model = tiny_model("mistral")
    given = prompts(7)
    expected = [generate(model, prompt, 8 if n % 2 else 16) for n, prompt in enumerate(given)]
    assert greedy(engine_of(model), given, 16) == expected
    assert stored.captured == [(1, rows, VOCAB) for rows in (8, 4, 2, 1)]
    assert set(stored.replays) > {0}


@contextmanager
def anything() -> Iterator[None]:
    """The stand-in for flash-attn looks at its numbers, which the real one does not."""
    yield


# -- where there are none ---------------------------------------------------------------------------------


def test_a_capture_that_fails_is_one_warning_and_no_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = put(Stored(fails_at=2), monkeypatch)
    model = tiny_model("llama")
    with caplog.at_level(logging.WARNING):
        engine = engine_of(model)
    (message,) = caplog.messages
    assert message == (
        "its decode steps run without CUDA graphs: CannotCapture: "
        "operation not permitted when stream is capturing"
    )
    assert greedy(engine, prompts(3)[:1], 9) == [generate(model, prompts(1)[0], 9)]
    assert backend.replays == []


def test_graphs_that_give_other_logits_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Stored):
        def capture(self, function: Replay) -> Replay:
            replay = super().capture(function)
            return lambda: replay() * 1.5

    put(Wrong(), monkeypatch)
    with caplog.at_level(logging.WARNING):
        engine = engine_of(tiny_model("llama"))
    assert "gives other logits when run packed" in caplog.text
    assert runner_of(engine)._graphs is None


def test_a_model_that_looks_at_its_numbers_is_not_captured(
    stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    forward = model.model.layers[1].mlp.forward

    def looking(x: torch.Tensor) -> torch.Tensor:
        return forward(x) if x.abs().sum() > 0 else x

    model.model.layers[1].mlp.forward = looking
    with caplog.at_level(logging.WARNING):
        engine = engine_of(model)
    assert "it asks for values on the way (aten._local_scalar_dense.default)" in caplog.text
    assert stored.captured == []
    assert greedy(engine, prompts(1), 5) == [generate(model, prompts(1)[0], 5)]


ASKING: dict[str, Callable[[torch.Tensor], object]] = {
    "a number": lambda x: x[0].item(),
    "a truth": lambda x: bool((x > 0).any()),
    "rows that a mask picks": lambda x: x[x > 0],
    "which are not zero": lambda x: x.nonzero(),
    "all that are different": lambda x: x.unique(),
    "a copy elsewhere": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())
def test_what_a_pass_may_not_ask_for_is_found(ask: Callable[[torch.Tensor], object]) -> None:
    with torch.inference_mode(), pytest.raises(CannotCapture, match="asks for values"), SameEveryTime():
        ask(torch.arange(4.0))


def test_what_a_pass_may_do_is_let_through() -> None:
    x = torch.arange(12.0).view(3, 4)
    with torch.inference_mode(), SameEveryTime():
        x[torch.tensor([0, 2])] = x[torch.tensor([1, 1])].to(torch.bfloat16).float()
        x.masked_fill_(x > 5, 0).topk(2)


@pytest.mark.parametrize(("wanted", "changes"), [(False, False), (True, True)], ids=["setting", "adapters"])
def test_nothing_is_captured_where_it_is_not_wanted_or_adapters_change_the_model(
    wanted: bool, changes: bool, stored: Stored
) -> None:
    settings = Settings(engine_slots=4, engine_compile=False, engine_cuda_graphs=wanted)
    choose_runner(tiny_model("llama"), settings, 0.1, changes=changes)
    assert stored.captured == []


def test_a_padded_model_has_none(stored: Stored) -> None:
    assert choose_runner(tiny_architecture("bloom"), Settings(engine_slots=2), 0.1).name == "padded"
    assert stored.captured == []


def test_there_are_none_off_cuda_or_over_several_gpus() -> None:
    assert backend_for({torch.device("cpu")}) is None
    assert backend_for({torch.device("cuda", 0), torch.device("cuda", 1)}) is None


# -- CUDA's own, with torch.cuda played -------------------------------------------------------------------


class Cuda:
    """What `CudaGraphs` uses of torch.cuda, as far as streams and the end of a capture go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: Any = self.Stream("the engine's")
        self.log: list[str] = []
        for name in ("Stream", "CUDAGraph", "stream", "graph", "current_stream", "set_stream", "device"):
            monkeypatch.setattr(capture.torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(capture.torch.cuda, "graph_pool_handle", lambda: "the pool")

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = name

        def wait_stream(self, other: object) -> None:
            pass

    class CUDAGraph:
        def replay(self) -> None:
            pass

    def current_stream(self) -> object:
        return self.current

    def set_stream(self, stream: object) -> None:
        self.current = stream

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: object, *, pool: str, stream: object, capture_error_mode: str) -> Iterator[None]:
        self.log.append(f"in {pool}, {capture_error_mode}")
        before, self.current = self.current, stream
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.current = before


def test_a_function_is_warmed_up_and_then_captured_on_a_stream_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch)
    engine_stream = cuda.current
    streams = []
    result = torch.zeros(1)

    def function() -> torch.Tensor:
        streams.append(cuda.current)
        return result

    graphs = CudaGraphs(torch.device("cuda", 0))
    replay = graphs.capture(function)
    assert len(streams) == capture.WARM_UPS + 1
    assert len(set(streams)) == 1
    assert engine_stream not in streams
    assert cuda.current is engine_stream
    assert replay() is result
    assert len(streams) == capture.WARM_UPS + 1, "a replay runs no Python"
    graphs.capture(function)
    assert cuda.log == ["in the pool, thread_local"] * 2


def test_a_broken_capture_tells_what_broke_it_and_leaves_the_engines_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch)
    engine_stream, calls = cuda.current, []

    def function() -> torch.Tensor:
        calls.append(1)
        if len(calls) > capture.WARM_UPS:
            raise ValueError("a copy from pageable memory\nin so many words")
        return torch.zeros(1)

    with pytest.raises(CannotCapture, match=r"^a copy from pageable memory$"):
        CudaGraphs(torch.device("cuda", 0)).capture(function)
    assert cuda.current is engine_stream

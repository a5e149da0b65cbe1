"""However a call, a model or a program ends: the slot is free, no thread is left, and each is told once."""

from __future__ import annotations

import _thread
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import psutil
import pytest
from transformers import AutoModelForCausalLM

from basaran_ops import ChoiceStream, LibraryModel, load_model
from basaran_ops.errors import ModelClosed, ModelLoadError, NotReady

from ..tiny_models import generate, tiny_tokenizer

ENDLESS: dict[str, Any] = {"max_tokens": 8000}


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def running(model: LibraryModel) -> int:
    return model.pool.status().outstanding


def begun(model: LibraryModel) -> ChoiceStream:
    stream = model("the cat", **ENDLESS)
    next(stream)
    assert running(model) == 1
    return stream


@pytest.fixture
def own_model(long_path: Path) -> Iterator[LibraryModel]:
    """A model that the test may close."""
    with load_model(long_path, model_dtype="float32", engine_slots=8, engine_threads=1) as model:
        yield model


@pytest.fixture(autouse=True)
def idle_after(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a sequence or a stream with the shared model."""
    yield
    if "model" in request.fixturenames:
        model = request.getfixturevalue("model")
        wait_until(lambda: running(model) == 0 and not model.pool._streams)


def test_closing_a_call_frees_its_slot_and_ends_the_iteration(model: LibraryModel) -> None:
    stream = begun(model)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_a_with_block_that_is_left_closes_its_call(model: LibraryModel) -> None:
    with model("the cat", **ENDLESS) as stream:
        for _ in stream:
            break
    assert list(stream) == []


def test_a_call_closed_by_another_thread_ends(model: LibraryModel) -> None:
    stream = begun(model)
    threading.Timer(0.1, stream.close).start()
    assert sum(1 for _ in stream) < 7999


def test_a_loop_that_is_left_frees_its_slot(model: LibraryModel) -> None:
    for _ in model("the cat", **ENDLESS):
        break


def test_an_error_in_a_loop_frees_its_slot_though_its_traceback_is_kept(model: LibraryModel) -> None:
    def loop() -> None:
        for _ in model("the cat", **ENDLESS):
            raise LookupError

    with pytest.raises(LookupError) as kept:
        loop()
    wait_until(lambda: running(model) == 0)
    assert kept.tb is not None


def test_an_interrupted_loop_frees_its_slot(model: LibraryModel) -> None:
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in model("the cat", **ENDLESS):
            pass
    timer.join()


def test_a_forgotten_call_frees_its_slot_iterated_or_not(model: LibraryModel) -> None:
    model("the cat", **ENDLESS)
    stream = begun_beside(model)
    del stream


def begun_beside(model: LibraryModel) -> ChoiceStream:
    stream = model("the rat", **ENDLESS)
    next(stream)
    return stream


def test_a_call_in_a_cycle_is_closed_whatever_lock_its_collector_holds(model: LibraryModel) -> None:
    class Node:
        """Keeps a call and itself alive."""

        def __init__(self, stream: ChoiceStream) -> None:
            self.stream, self.itself = stream, self

    gc.disable()
    try:
        Node(begun(model))
        with held_elsewhere(model.pool._lock):
            # Taking the lock here would never end.
            gc.collect()
    finally:
        gc.enable()


@contextmanager
def held_elsewhere(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Another thread holds it."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_signal_handler_may_close_what_its_own_thread_reads(model: LibraryModel) -> None:
    current: list[ChoiceStream] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: current[0].close())
    random = Random(1)
    try:
        for _ in range(150):
            with model("the cat", **ENDLESS) as stream:
                current[:] = [stream]
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 5e-3))
                for _ in stream:
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_best_of_many_forgotten_frees_every_slot(model: LibraryModel) -> None:
    model("the cat", n=1, best_of=6, **ENDLESS)
    wait_until(lambda: running(model) == 0)


def test_calls_that_wait_for_a_slot_are_freed_too(model: LibraryModel) -> None:
    streams = [model("the cat", **ENDLESS) for _ in range(12)]
    wait_until(lambda: model.stats.running == 8)
    assert running(model) == 12
    streams.clear()
    wait_until(lambda: running(model) == 0)


def test_a_closed_model_refuses_and_closes_again(own_model: LibraryModel) -> None:
    own_model.close()
    own_model.close()
    assert own_model.closed
    assert "closed" in repr(own_model)
    with pytest.raises(ModelClosed, match="the model was closed"):
        own_model("the cat")
    # What it knows stays.
    assert own_model.tokenizer.decode(own_model.tokenize("the cat").tolist()) == "the cat"


def test_closing_a_model_ends_every_call_with_one_error_of_its_own(own_model: LibraryModel) -> None:
    together = threading.Barrier(13)

    def read() -> list[object]:
        stream = own_model("the cat", **ENDLESS)
        told: list[object] = []
        together.wait()
        try:
            for _ in stream:
                pass
        except ModelClosed as error:
            told.append(error)
        # It was told once, and there is no more.
        return [*told, *stream]

    with ThreadPoolExecutor(12) as threads:
        reading = [threads.submit(read) for _ in range(12)]
        together.wait()
        wait_until(lambda: own_model.stats.running == 8)
        own_model.close()
        ends = [one.result(timeout=10) for one in reading]
    assert [[str(error) for error in told] for told in ends] == [["the model was closed"]] * 12
    assert len({id(told[0]) for told in ends}) == 12


def test_a_model_may_be_closed_from_within_a_loop(own_model: LibraryModel) -> None:
    def loop() -> None:
        for _ in own_model("the cat", **ENDLESS):
            own_model.close()

    with pytest.raises(ModelClosed):
        loop()
    assert own_model.closed


def test_what_had_come_before_the_close_is_still_there(own_model: LibraryModel) -> None:
    stream = own_model("the cat", max_tokens=3, temperature=0)
    wait_until(lambda: running(own_model) == 0)
    own_model.close()
    assert [piece["finish_reason"] for piece in stream][-1] == "length"


def test_a_model_that_nobody_refers_to_closes_itself(long_path: Path) -> None:
    before = threading.enumerate()
    model = load_model(long_path, engine_slots=1, engine_threads=1)
    stream = model("the cat", max_tokens=20)
    del model
    # As long as a call is read, somebody does.
    assert [piece["finish_reason"] for piece in stream][-1] == "length"
    assert len(threading.enumerate()) == len(before) + 2
    del stream
    wait_until(lambda: threading.enumerate() == before)


def test_a_failed_load_leaves_nothing(tmp_path: Path, long_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((long_path / name).read_bytes())
    before = threading.enumerate()
    for _ in range(3):
        with pytest.raises(ModelLoadError, match="there are no weights"):
            load_model(tmp_path, engine_slots=1)
        assert threading.enumerate() == before


@pytest.mark.parametrize("way", ["a call", "reading on"])
def test_a_fork_is_told_that_the_model_is_not_its_own(model: LibraryModel, way: str) -> None:
    with begun(model) as stream:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                list(model("the cat") if way == "a call" else stream)
            except NotReady as error:
                status = 0 if "forks" in error.message else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_ctrl_c_does_not_wait_for_a_model_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    begun, over = threading.Event(), threading.Event()

    def resolve(settings: object, progress: object) -> NoReturn:
        begun.set()
        over.wait()
        raise ModelLoadError("it was interrupted")

    monkeypatch.setattr("basaran_ops.model.resolve", resolve)
    main = threading.get_ident()
    interrupt = threading.Thread(target=lambda: (begun.wait(), signal.pthread_kill(main, signal.SIGINT)))
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            load_model("any/model")
    finally:
        over.set()
        interrupt.join()
    # The threads of the load that nobody waits for.
    wait_until(lambda: set(threading.enumerate()) <= before)


THREADS = 50


def test_fifty_threads_share_a_model_and_each_gets_its_own_text(model: LibraryModel, long_path: Path) -> None:
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(long_path), tiny_tokenizer()
    prompts = [f"the {word} number {number}" for number in range(5) for word in ("cat", "rat")]
    alone = [
        tokenizer.decode(generate(plain, tuple(tokenizer.encode(prompt)), 16), skip_special_tokens=True)
        for prompt in prompts
    ]
    steps = model.stats.step
    together = threading.Barrier(THREADS)
    before = {thread.ident for thread in threading.enumerate()}

    def ask(prompt: str) -> str:
        together.wait()
        return "".join(piece["text"] for piece in model(prompt, max_tokens=16, temperature=0))

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(ask, prompts * 5)) == alone * 5
    # One at a time would be 50 x 16 steps; eight slots make at least an eighth of that.
    assert model.stats.step - steps < THREADS * 16 / 4
    assert {thread.ident for thread in threading.enumerate()} <= before
    assert (model.stats.running, model.stats.waiting, model.stats.cached_tokens) == (0, 0, 0)


def memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def test_calls_leave_no_memory_behind(model: LibraryModel) -> None:
    def many() -> None:
        for number in range(100):
            stream = model("the cat", max_tokens=3, seed=number, logprobs=2)
            if number % 2:
                list(stream)

    many()
    before = memory()
    for _ in range(3):
        many()
    assert memory() - before < 4 * 2**20


def test_models_that_load_at_the_same_time_are_all_recorded(
    long_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load(_: int) -> None:
        load_model(long_path, engine_slots=2, engine_context_length=64, engine_threads=1).close()

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(3) as threads:
        list(threads.map(load, range(3)))
    assert caplog.text.count("operations, recorded in") == 3

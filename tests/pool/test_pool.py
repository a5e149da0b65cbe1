from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from basaran_ops.errors import (
    BasaranError,
    DeadlineExceeded,
    EngineFailed,
    ModelLoadError,
    NotReady,
    Overloaded,
    StreamClosed,
)
from basaran_ops.outputs import ModelInfo, SequenceOutput
from basaran_ops.pool import GenerationPool, SequenceWork, ThreadTransport, TokenStream, replica
from basaran_ops.pool.engine_loop import Load
from basaran_ops.pool.pool import shutting_down
from basaran_ops.pool.stream import StreamOutput
from basaran_ops.sampling_params import SamplingParams

from .fake_engine import CRASH, INFO, REFUSE, FakeEngine, load

MakePool = Callable[..., GenerationPool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    pools = []

    def make(*loads: Load, capacity: int = 10, **kwargs: object) -> GenerationPool:
        starts = [lambda load=one: ThreadTransport(load) for one in loads or (load,)]
        pool = GenerationPool(starts, capacity=capacity, **kwargs)  # type: ignore[arg-type]
        pools.append(pool)
        pool.start()
        return pool

    yield make
    for pool in pools:
        pool.close()


def held(engine: FakeEngine) -> Load:
    """Loads an engine that steps only when the test says so."""
    engine.free = False
    return lambda progress: (engine, INFO)


def work(count: int = 1, max_tokens: int = 3, prompt: tuple[int, ...] = (1,)) -> list[SequenceWork]:
    return [SequenceWork(prompt, SamplingParams(max_tokens=max_tokens), None)] * count


def read(stream: TokenStream) -> dict[int, list[int]]:
    """All tokens of a stream, by sequence."""
    tokens: dict[int, list[int]] = {}
    while outputs := stream.take(timeout=10):
        for event in outputs:
            tokens.setdefault(event.index, []).extend(event.output.token_ids)
    return tokens


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)


def test_each_sequence_of_a_request_comes_whole_and_in_order(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.wait_ready(5)
    tokens = read(pool.submit(work(3)))
    assert sorted(tokens) == [0, 1, 2]
    assert [[token % 1000 for token in tokens[index]] for index in range(3)] == [[0, 1, 2]] * 3
    assert pool.status().outstanding == 0


def test_what_an_engine_has_lost_ends_while_others_keep_it_going(make_pool: MakePool) -> None:
    engine = FakeEngine()
    pool = make_pool(held(engine))
    pool.wait_ready(5)
    first, lost, last = (pool.submit(work(max_tokens=tokens)) for tokens in (3, 9, 9))
    eventually(lambda: len(engine.running) == 3)
    del engine.running[2]
    # Engines tell of the oldest alone: while that is older, it may be there.
    engine.go.release(2)
    eventually(lambda: engine.stats.step == 2)
    assert not lost.closed
    engine.go.release()
    with pytest.raises(EngineFailed, match="has lost the request"):
        read(lost)
    assert len(read(first)[0]) == 3
    engine.go.release(6)
    assert len(read(last)[0]) == 9
    assert pool.status().outstanding == 0


def test_sequences_go_to_the_replica_with_the_fewest(make_pool: MakePool) -> None:
    engines = [FakeEngine(), FakeEngine(), FakeEngine()]
    pool = make_pool(*(held(engine) for engine in engines))
    eventually(lambda: [r.state for r in pool.status().replicas] == ["ready"] * 3)
    streams = [pool.submit(work()) for _ in range(7)]
    eventually(lambda: sorted(len(engine.running) for engine in engines) == [2, 2, 3])
    for stream in streams:
        pool.release(stream)


def test_a_request_past_the_capacity_is_refused_at_once(make_pool: MakePool) -> None:
    pool = make_pool(held(FakeEngine()), capacity=3)
    pool.wait_ready(5)
    streams = [pool.submit(work()) for _ in range(3)]
    with pytest.raises(Overloaded) as raised:
        pool.submit(work())
    assert raised.value.status == 429
    assert 1 <= raised.value.retry_after <= 60
    pool.release(streams[0])
    eventually(lambda: pool.status().outstanding == 2)
    pool.release(pool.submit(work()))


def test_a_request_larger_than_the_pool_is_taken_whole_when_there_is_room(make_pool: MakePool) -> None:
    pool = make_pool(capacity=3)
    pool.wait_ready(5)
    assert len(read(pool.submit(work(20)))) == 20


def test_closing_a_stream_frees_its_sequences_and_wakes_its_consumer(make_pool: MakePool) -> None:
    engine = FakeEngine()
    pool = make_pool(held(engine))
    pool.wait_ready(5)
    stream = pool.submit(work(4, max_tokens=100))
    raised: list[type[BaseException]] = []

    def consume() -> None:
        try:
            stream.take()
        except StreamClosed as error:
            raised.append(type(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    stream.close()
    stream.close()
    consumer.join(5)
    assert raised == [StreamClosed]
    eventually(lambda: not engine.running and pool.status().outstanding == 0)


def test_one_sequence_of_a_request_can_end_early(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.wait_ready(5)
    stream = pool.submit(work(2, max_tokens=500))
    reasons = {}
    stream.cancel(0)
    while outputs := stream.take(10):
        reasons |= {e.index: e.output.finish_reason for e in outputs if e.output.finish_reason}
    assert reasons == {0: "abort", 1: "length"}


def test_take_gives_up_after_its_timeout(make_pool: MakePool) -> None:
    pool = make_pool(held(FakeEngine()))
    pool.wait_ready(5)
    stream = pool.submit(work())
    assert stream.take(timeout=0.05) is None
    pool.release(stream)


def test_a_failed_engine_fails_its_requests_alone_and_is_replaced(make_pool: MakePool) -> None:
    other = FakeEngine()
    pool = make_pool(load, held(other))
    eventually(lambda: [r.state for r in pool.status().replicas] == ["ready"] * 2)
    # The first goes to replica 0, which has the lower number; the second to the other.
    doomed, fine = pool.submit(work(prompt=CRASH)), pool.submit(work())
    with pytest.raises(EngineFailed, match="the step raised"):
        read(doomed)
    assert pool.status().ready
    other.free = True
    assert len(read(fine)[0]) == 3
    eventually(lambda: pool.status().replicas[0].state == "ready")
    assert pool.status().replicas[0].restarts == 1
    assert pool.status().outstanding == 0


def test_a_sequence_that_the_engine_refuses_fails_its_request_alone(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.wait_ready(5)
    with pytest.raises(EngineFailed, match="no room for this prompt"):
        read(pool.submit(work(prompt=REFUSE)))
    assert len(read(pool.submit(work()))) == 1


def test_a_model_that_can_never_load_is_told_once(make_pool: MakePool) -> None:
    told: list[str] = []

    def fail(progress: Callable[[str], None]) -> tuple[FakeEngine, ModelInfo]:
        raise ModelLoadError("no such model")

    pool = make_pool(fail, on_failure=lambda error: told.append(error.message))
    with pytest.raises(ModelLoadError, match="no such model"):
        pool.wait_ready(5)
    with pytest.raises(NotReady):
        pool.submit(work())
    assert told == ["no such model"]


def test_a_load_that_may_succeed_later_is_tried_again(make_pool: MakePool) -> None:
    attempts = iter([ModelLoadError("hub down", permanent=False), OSError("disk"), None])

    def flaky(progress: Callable[[str], None]) -> tuple[FakeEngine, ModelInfo]:
        error = next(attempts)
        if error is not None:
            raise error
        return load(progress)

    pool = make_pool(flaky)
    pool.wait_ready(5)
    assert pool.status().replicas[0].restarts == 2


def test_a_tokenizer_that_cannot_be_read_fails_the_load(make_pool: MakePool) -> None:
    def on_ready(info: ModelInfo) -> None:
        raise ModelLoadError("no tokenizer")

    with pytest.raises(ModelLoadError, match="no tokenizer"):
        make_pool(on_ready=on_ready).wait_ready(5)


def test_what_was_ready_once_is_tried_again_whatever_the_error(make_pool: MakePool) -> None:
    loads = iter([None, ModelLoadError("memory is short"), None])

    def reload(progress: Callable[[str], None]) -> tuple[FakeEngine, ModelInfo]:
        error = next(loads)
        if error is not None:
            raise error
        return load(progress)

    pool = make_pool(reload, on_failure=lambda error: pytest.fail(error.message))
    pool.wait_ready(5)
    with pytest.raises(EngineFailed):
        read(pool.submit(work(prompt=CRASH)))
    eventually(lambda: pool.status().ready)
    assert pool.status().replicas[0].restarts == 2


def test_a_defect_while_getting_ready_is_a_failed_load_that_is_tried_again(make_pool: MakePool) -> None:
    calls = iter([RuntimeError("a defect"), None])

    def on_ready(info: ModelInfo) -> None:
        error = next(calls)
        if error is not None:
            raise error

    pool = make_pool(on_ready=on_ready)
    pool.wait_ready(5)
    assert pool.status().replicas[0].restarts == 1


def test_outputs_that_came_before_an_error_are_not_lost(make_pool: MakePool) -> None:
    engine = FakeEngine()
    pool = make_pool(held(engine))
    pool.wait_ready(5)
    stream = pool.submit(work())
    engine.go.release()
    eventually(lambda: not stream._queue.empty())
    pool.abort()
    outputs = stream.take(5)
    assert outputs is not None
    assert len(outputs) == 1
    with pytest.raises(DeadlineExceeded):
        stream.take(5)


def test_requests_before_ready_hear_what_is_going_on(make_pool: MakePool) -> None:
    go = threading.Event()

    def slow(progress: Callable[[str], None]) -> tuple[FakeEngine, ModelInfo]:
        progress("reading weights")
        go.wait(5)
        return load(progress)

    pool = make_pool(slow)
    eventually(lambda: pool.status().replicas[0].stage == "reading weights")
    with pytest.raises(NotReady, match="reading weights") as raised:
        pool.submit(work())
    assert (raised.value.status, raised.value.code) == (503, "model_loading")
    go.set()
    pool.wait_ready(5)


def test_draining_lets_requests_finish_and_refuses_new_ones(make_pool: MakePool) -> None:
    engine = FakeEngine()
    pool = make_pool(held(engine))
    pool.wait_ready(5)
    stream = pool.submit(work())
    pool.drain()
    with pytest.raises(NotReady, match="shutting down"):
        pool.submit(work())
    engine.free = True
    assert len(read(stream)[0]) == 3


def test_aborting_ends_every_request_with_an_error(make_pool: MakePool) -> None:
    pool = make_pool(held(FakeEngine()))
    pool.wait_ready(5)
    streams = [pool.submit(work()) for _ in range(3)]
    pool.abort()
    for stream in streams:
        with pytest.raises(DeadlineExceeded):
            stream.take(5)
    eventually(lambda: pool.status().outstanding == 0)


def test_every_request_ends_exactly_once_under_fire(make_pool: MakePool) -> None:
    """Many threads submit, leave and crash engines; nothing stays behind."""
    pool = make_pool(load, load, capacity=40)
    pool.wait_ready(5)
    endings: list[str] = []

    def client(number: int) -> None:
        for attempt in range(40):
            prompt = CRASH if (number, attempt) in ((3, 5), (7, 30)) else (1,)
            try:
                stream = pool.submit(work(1 + attempt % 3, max_tokens=5, prompt=prompt))
            except (Overloaded, NotReady) as error:
                endings.append(error.code or "")
                time.sleep(0.05)
                continue
            try:
                if attempt % 4 == 0:
                    stream.take(10)
                    endings.append("left")
                else:
                    read(stream)
                    endings.append("done")
            except BasaranError as error:
                endings.append(type(error).__name__)
            finally:
                pool.release(stream)

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(client, range(10)))
    assert len(endings) == 400
    assert endings.count("done") > 50
    eventually(lambda: pool.status().outstanding == 0)
    assert not pool._streams


def test_a_pool_that_is_not_patient_takes_the_first_failure_for_the_last(make_pool: MakePool) -> None:
    def hub_is_down(progress: object) -> tuple[FakeEngine, ModelInfo]:
        raise ModelLoadError("the hub cannot be reached", permanent=False)

    pool = make_pool(hub_is_down, patient=False)
    with pytest.raises(ModelLoadError, match="the hub cannot be reached"):
        pool.wait_ready(5)
    assert pool.status().replicas[0].restarts == 0


def test_an_engine_that_takes_long_to_load_and_dies_at_once_is_lost_too(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "STEADY_SECONDS", 0.05)
    monkeypatch.setattr(replica, "FIRST_BACKOFF", 0.01)

    def slowly(progress: object) -> tuple[FakeEngine, ModelInfo]:
        time.sleep(0.1)
        return FakeEngine(), INFO

    pool = make_pool(slowly)
    for _ in range(5):
        pool.wait_ready(5)
        with pytest.raises(EngineFailed):
            read(pool.submit(work(prompt=CRASH)))
        eventually(lambda: not pool.status().ready)
    eventually(lambda: pool.status().replicas[0].lost)


def test_of_two_errors_the_first_is_told_after_what_came_before_it() -> None:
    stream = TokenStream(1, lambda stream, index: None)
    stream.put(StreamOutput(0, SequenceOutput(1, (5,), None)))
    stream.fail(shutting_down())
    stream.fail(EngineFailed("the engine died"))
    taken = stream.take()
    assert taken is not None
    assert [each.output.token_ids for each in taken] == [(5,)]
    with pytest.raises(BasaranError) as told:
        stream.take()
    assert told.value.code == "shutting_down"

"""The real default model behind the real server, asked by the real client."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import httpx
import openai
import pytest

from ..running_server import RunningServer, running_server

CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def server(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """No MODEL at all, 32 slots and room for two more."""
    log = tmp_path_factory.mktemp("default") / "log"
    with running_server(
        log,
        SERVER_QUEUE_LIMIT="2",
        ENGINE_CONTEXT_LENGTH="2048",
        ENGINE_TOKEN_BUDGET="64",
        ENGINE_THREADS="",
    ) as server:
        yield server.wait_ready()


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


def text_of(stream: openai.Stream[openai.types.Completion]) -> str:
    return "".join(chunk.choices[0].text for chunk in stream)


def test_the_capital_of_france_is_paris(client: openai.OpenAI) -> None:
    fields = {"model": "any", "prompt": CAPITAL, "max_tokens": 12, "temperature": 0}
    plain = client.completions.create(**fields)
    assert plain.model == "SmolLM2-135M-Instruct"
    assert plain.choices[0].text.startswith(" Paris")
    assert plain.usage is not None
    assert plain.usage.prompt_tokens == 5
    assert text_of(client.completions.create(**fields, stream=True)) == plain.choices[0].text


@pytest.mark.parametrize(
    "prompt",
    [
        "Emoji: 😀 😃 😄 😁 😆 😅 😂 🤣",
        "中国的首都是北京。日本的首都是东京。法国的首都是",
        "Ünïcödé: naïve café, Ελληνικά, кириллица, עברית,",
    ],
)
@pytest.mark.parametrize("temperature", [0, 1.2])
def test_streamed_text_joined_is_the_plain_text(
    client: openai.OpenAI, prompt: str, temperature: float
) -> None:
    fields = {"model": "any", "prompt": prompt, "max_tokens": 40, "temperature": temperature, "seed": 11}
    plain = client.completions.create(**fields).choices[0].text
    assert text_of(client.completions.create(**fields, stream=True)) == plain
    # Most of what it says to these is more than one byte a character.
    assert any(ord(character) > 127 for character in plain) or temperature


def streams(server: RunningServer, count: int, max_tokens: int) -> float:
    """Run so many streams at once; the output tokens per second of all together."""
    barrier = threading.Barrier(count)

    def one(number: int) -> int:
        fields = {
            "prompt": f"Story number {number}:",
            "max_tokens": max_tokens,
            "seed": number,
            "stream": True,
            "ignore_eos": True,
        }
        barrier.wait()
        options = {"stream_options": {"include_usage": True}, "top_k": 50}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=fields | options, timeout=120
        ) as response:
            assert response.status_code == 200, response.read()
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
        return int(usage["completion_tokens"])

    started = time.monotonic()
    with ThreadPoolExecutor(count) as threads:
        tokens = sum(threads.map(one, range(count)))
    return tokens / (time.monotonic() - started)


def test_32_streams_run_in_one_batch(server: RunningServer) -> None:
    batch_sizes: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            batch_sizes.append(server.stats()["batch_size"])

    sampler = threading.Thread(target=sample)
    sampler.start()
    rate = streams(server, 32, 120)
    done.set()
    sampler.join()
    print(f"32 streams: {rate:.0f} tokens/s, batch sizes seen {sorted(set(batch_sizes))}")
    assert max(batch_sizes) == 32
    assert server.health()["outstanding"] == 0


def test_16_streams_give_at_least_3_times_the_tokens_of_1(server: RunningServer) -> None:
    # Alternating, so that a slow moment of the machine hits both.
    rates = [(streams(server, 1, 32), streams(server, 16, 32)) for _ in range(3)]
    one, sixteen = (statistics.median(rate) for rate in zip(*rates, strict=True))
    print(f"1 stream: {one:.1f} tokens/s, 16 streams: {sixteen:.1f} tokens/s, ratio {sixteen / one:.1f}")
    assert sixteen >= 3 * one


class Load:
    """Streams held open until the end of the block."""

    def __init__(self, server: RunningServer, count: int) -> None:
        self.server = server
        self.clients = [httpx.Client(timeout=120) for _ in range(count)]
        self.received = [0] * count
        self.threads = [threading.Thread(target=self._read, args=(number,)) for number in range(count)]
        self.over = threading.Event()

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        # Those that still wait in the queue see it at their first token.
        self.over.set()
        for thread in self.threads:
            thread.join()
        for client in self.clients:
            client.close()
        self.server.wait_for(lambda health: health["outstanding"] == 0)

    def _read(self, number: int) -> None:
        fields = {"prompt": f"Story {number}", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        url = f"{self.server.url}/v1/completions"
        with self.clients[number].stream("POST", url, json=fields) as response:
            for _ in response.iter_lines():
                self.received[number] += 1
                if self.over.is_set():
                    return


def test_a_request_past_slots_and_queue_is_refused_at_once_while_the_others_stream(
    server: RunningServer,
) -> None:
    with Load(server, 34) as load:
        server.wait_for(lambda health: health["outstanding"] == 34, 30)
        server.wait_for(lambda health: health["replicas"][0]["stats"]["running"] == 32, 30)
        times = []
        before = sum(load.received)
        for _ in range(20):
            started = time.monotonic()
            refused = server.complete(prompt="x")
            times.append(time.monotonic() - started)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            time.sleep(0.05)
        print(f"429 in {statistics.median(times) * 1000:.1f} ms, at most {max(times) * 1000:.1f} ms")
        assert statistics.median(times) < 0.05
        assert sum(load.received) > before, "the streams stand still"


def steps_to_forget(
    server: RunningServer,
    fields: dict[str, object],
    when: Callable[[], object],
    forgotten: Callable[[dict[str, int]], bool],
) -> int:
    """Send a request, leave once `when` returns; the engine's steps from then until it has `forgotten` it.

    One more than it was seen to keep it for, since a look at it may come late where so much runs.
    """
    client = httpx.Client(timeout=120)
    request = client.build_request("POST", f"{server.url}/v1/completions", content=json.dumps(fields))
    thread = threading.Thread(target=_send_until_closed, args=(client, request))
    # Made before, and asked without a pause: a step may be a few milliseconds.
    with httpx.Client(base_url=server.url) as looking:

        def stats() -> dict[str, int]:
            found: dict[str, int] = looking.get("/health").json()["replicas"][0]["stats"]
            return found

        thread.start()
        when()
        # Closing an httpx client does not interrupt a read; closing its socket does.
        for connection in list(client._transport._pool._connections):  # type: ignore[attr-defined]
            stream = connection._connection._network_stream
            stream.get_extra_info("socket").shutdown(2)
        step = kept = stats()["step"]
        until = time.monotonic() + 10
        while not forgotten(now := stats()):
            kept = now["step"]
            assert time.monotonic() < until, f"still {now}"
            time.sleep(0.002)
    thread.join()
    client.close()
    return kept + 1 - step


def _send_until_closed(client: httpx.Client, request: httpx.Request) -> None:
    try:
        with client.stream(request.method, request.url, content=request.content) as response:
            for _ in response.iter_bytes():
                pass
    except httpx.HTTPError:
        pass


LONG = {"max_tokens": 1000, "temperature": 1, "ignore_eos": True}

OTHERS = 16
"""Streams that run beside it, so that a step is longer than a look at how things are."""


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        (LONG | {"prompt": "x", "stream": True}, "streaming"),
        (LONG | {"prompt": "x"}, "plain"),
        (LONG | {"prompt": [500] * 1000, "stream": True}, "prefill"),
        (LONG | {"prompt": [500] * 1000}, "prefill of a plain request"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_client_that_leaves_frees_its_slot_within_two_steps(
    server: RunningServer, fields: dict[str, object], phase: str
) -> None:
    with Load(server, OTHERS):
        server.wait_for(lambda health: health["replicas"][0]["stats"]["running"] == OTHERS, 30)

        def deep_in() -> None:
            server.wait_for(lambda health: health["replicas"][0]["stats"]["running"] == OTHERS + 1)
            cached = server.stats()["cached_tokens"]
            server.wait_for(lambda health: health["replicas"][0]["stats"]["cached_tokens"] > cached + 10)

        steps = steps_to_forget(server, fields, deep_in, lambda stats: stats["running"] == OTHERS)
        print(f"{phase}: freed after {steps} steps")
        assert steps <= 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_is_forgotten_within_two_steps(
    server: RunningServer, stream: bool
) -> None:
    with Load(server, 32):
        server.wait_for(lambda health: health["replicas"][0]["stats"]["running"] == 32, 30)
        waiting = lambda: server.wait_for(lambda h: h["replicas"][0]["stats"]["waiting"] == 1, 30)  # noqa: E731
        fields = LONG | {"prompt": "x", "stream": stream}
        assert steps_to_forget(server, fields, waiting, lambda stats: stats["waiting"] == 0) <= 2
        assert server.health()["outstanding"] == 32

"""The server's counters agree with what its clients counted, exactly."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from ..running_server import RunningServer, running_server
from ..scrape import Scrape

REQUESTS = 520
CLIENTS = 12
KEY = {"Authorization": "Bearer the-key"}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
WORDS = ["the", "cat", "sat", "on", "mat", "hat;", "rat", "that", "ate", "oats", "house", "was", "stout"]


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("counters")
    (directory / "template").write_text(TEMPLATE)
    with running_server(
        directory / "log",
        MODEL=str(tiny_path),
        MODEL_DTYPE="float32",
        MODEL_CHAT_TEMPLATE=str(directory / "template"),
        SERVER_MODEL_NAME="org/tiny",
        SERVER_STRICT_MODEL="true",
        SERVER_API_KEYS="the-key",
        SERVER_QUEUE_LIMIT="4",
        ENGINE_SLOTS="4",
        LOG_FORMAT="json",
    ) as server:
        yield server.wait_ready()


class Client:
    """Sends requests of all kinds and counts what came of them."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        self.server = server
        self.random = Random(seed)
        self.counts: Counter[str] = Counter()

    def run(self, count: int) -> Counter[str]:
        with httpx.Client(base_url=self.server.url, headers=KEY, timeout=60) as self.http:
            for _ in range(count):
                kind = self.random.choice(
                    [self.plain, self.plain, self.stream, self.stream, self.chat, self.bad, self.leave]
                )
                kind()
        return self.counts

    def fields(self) -> dict[str, Any]:
        random = self.random
        prompts = [" ".join(random.choices(WORDS, k=random.randrange(1, 40))) for _ in range(3)]
        fields: dict[str, Any] = {
            "model": "org/tiny",
            "prompt": prompts[: random.randrange(1, 4)] if random.random() < 0.3 else prompts[0],
            "max_tokens": random.choice([0, 1, 3, 12, 30]),
            "n": random.choice([1, 1, 1, 2]),
            "seed": random.randrange(1000),
        }
        if random.random() < 0.3:
            fields["stop"] = [" th", "a", "e"]
        if random.random() < 0.2:
            fields |= {"echo": True, "logprobs": 1}
        return fields

    def plain(self) -> None:
        self.whole("/v1/completions", self.fields())

    def chat(self) -> None:
        messages = [{"role": "user", "content": " ".join(self.random.choices(WORDS, k=9))}]
        body = {"model": "org/tiny", "messages": messages, "max_tokens": self.random.choice([1, 9])}
        self.whole("/v1/chat/completions", body | {"n": self.random.choice([1, 2])})

    def whole(self, path: str, body: dict[str, Any]) -> None:
        response = self.http.post(path, json=body)
        if self.admitted(response.status_code):
            answer = response.json()
            self.ended([choice["finish_reason"] for choice in answer["choices"]], answer["usage"])

    def stream(self) -> None:
        body = self.fields() | {"stream": True, "stream_options": {"include_usage": True}}
        with self.http.stream("POST", "/v1/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line.startswith("data: {")]
        if self.admitted(response.status_code):
            *events, last = (json.loads(line[6:]) for line in lines)
            reasons = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
            self.ended(reasons, last["usage"])

    def leave(self) -> None:
        """Go as soon as the first text is there, long before the end."""
        body = {"model": "org/tiny", "prompt": "the", "max_tokens": 500, "stream": True}
        with httpx.stream("POST", f"{self.server.url}/v1/completions", json=body, headers=KEY) as response:
            if self.admitted(response.status_code):
                next(response.iter_lines())
                self.counts["ended abort"] += 1
                self.counts["left"] += 1

    def bad(self) -> None:
        reason, fields, headers = self.random.choice(
            [
                ("invalid", {"n": 0}, KEY),
                ("invalid", {"temperature": "hot"}, KEY),
                ("too_long", {"prompt": "x" * 5000}, KEY),
                ("unknown_model", {"model": "other"}, KEY),
                ("unauthorized", {}, {"Authorization": "Bearer wrong"}),
            ]
        )
        body = {"model": "org/tiny", "prompt": "x"} | fields
        response = self.http.post("/v1/completions", json=body, headers=headers)
        assert response.status_code in (400, 401, 404)
        self.counts[f"refused {reason}"] += 1

    def admitted(self, status: int) -> bool:
        if status == 429:
            self.counts["refused queue_full"] += 1
            return False
        assert status == 200
        return True

    def ended(self, reasons: list[str], usage: dict[str, int]) -> None:
        self.counts["ended " + ("length" if "length" in reasons else "stop")] += 1
        self.counts["prompt"] += usage["prompt_tokens"]
        self.counts["generated"] += usage["completion_tokens"]


def test_counters_agree_with_500_mixed_requests(server: RunningServer) -> None:
    clients = [Client(server, seed) for seed in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        counts = sum(threads.map(lambda client: client.run(REQUESTS // CLIENTS), clients), Counter[str]())
    server.wait_for(lambda health: health["outstanding"] == 0)
    time.sleep(0.3)
    scrape = Scrape.of(server)
    ended = {key.removeprefix("ended "): n for key, n in counts.items() if key.startswith("ended ")}
    refused = {key.removeprefix("refused "): n for key, n in counts.items() if key.startswith("refused ")}
    print(f"ended {ended}, refused {refused}, left {counts['left']}")
    assert sum(ended.values()) + sum(refused.values()) == REQUESTS // CLIENTS * CLIENTS
    assert min(counts["left"], *ended.values(), *refused.values()) > 0, "not a mixture"
    assert scrape.by("requests_total", "finished_reason") == ended
    assert scrape.by("requests_rejected_total", "reason") == refused
    assert scrape.value("client_disconnects_total") == counts["left"]
    statuses = scrape.by("http_requests_total", "status")
    assert statuses["4xx"] == sum(refused.values())
    # The tokens of those who left are the server's alone to know.
    assert scrape.value("prompt_tokens_total") == counts["prompt"] + counts["left"] * len_of(server, "the")
    left = [line for line in log_lines(server) if line.get("client_gone")]
    assert len(left) == counts["left"]
    of_leavers = sum(line["completion_tokens"] for line in left)
    assert scrape.value("generation_tokens_total") == counts["generated"] + of_leavers
    for histogram in ("e2e_request_latency_seconds", "request_prompt_tokens", "request_params_max_tokens"):
        assert scrape.value(f"{histogram}_count") == sum(ended.values())
    assert scrape.value("request_generation_tokens_sum") == counts["generated"] + of_leavers
    assert scrape.value("num_requests_running") == scrape.value("num_requests_waiting") == 0
    assert scrape.value("open_streams") == scrape.value("kv_cache_usage_perc") == 0


def test_the_log_has_one_line_a_request_and_no_text_nor_key(server: RunningServer) -> None:
    lines = log_lines(server)
    scrape = Scrape.of(server)
    ended = [line for line in lines if line["event"] == "request ended"]
    refused = [line for line in lines if line["event"] == "request refused"]
    assert len(ended) == scrape.value("requests_total")
    assert len(refused) == scrape.value("requests_rejected_total")
    assert len({line["request_id"] for line in ended + refused}) == len(ended + refused)
    assert {"model", "status", "outcome", "queue_ms", "first_token_ms", "duration_ms"} <= ended[0].keys()
    whole = server.log.read_text()
    assert "the-key" not in whole
    assert "wrong" not in whole
    assert "oats" not in whole


def log_lines(server: RunningServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def len_of(server: RunningServer, prompt: str) -> int:
    count: int = server.http.post("/tokenize", json={"prompt": prompt}, headers=KEY).json()["count"]
    return count

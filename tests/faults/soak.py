"""Mixed traffic and faults for long, and what it leaves: `python -m tests.faults.soak --minutes 60`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ..running_server import RunningServer, running_server
from ..tiny_models import save_tiny
from .belongings import Belongings, engines_of, processes_of, told_ends
from .clients import ask, connections, eventually, request_bytes, reset
from .samples import Samples

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

SETTINGS = {
    "SERVER_MODEL_NAME": "soaked",
    "ENGINE_SLOTS": "4",
    "SERVER_QUEUE_LIMIT": "6",
    "ENGINE_STALL_TIMEOUT": "3",
    "SERVER_CHANNEL_TIMEOUT": "3",
    "LOG_FORMAT": "json",
}

EXPECTED_CODES = {"queue_full", "engine_failed", "model_loading", "context_length_exceeded"}
"""Of errors: full, replaced, or a request that is wrong. Other wrong ones have a 400 and no code."""

WORDS = ["the", "cat", "sat", "on", "mat", "hat;", "rat", "that", "ate", "oats", "house", "was", "stout"]


class Traffic:
    """Clients, each on a thread, that ask for everything there is until they are told to stop."""

    def __init__(self, server: RunningServer, clients: int) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        """What should never be."""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        random = Random(seed)
        kinds = (self._ask, self._ask, self._ask, self._chat, self._chat, self._leave, self._stall, self._err)
        while not self._over.is_set():
            try:
                random.choice(kinds)(random)
            except Exception as error:
                self._note("defect", f"{type(error).__name__}: {error}")

    def _note(self, kind: str, fault: str = "") -> None:
        with self._lock:
            self.counts[kind] += 1
            if fault:
                self.faults.append(fault)

    def _fields(self, random: Random) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "max_tokens": random.choice([1, 8, 40, 120]),
            "n": random.choice([1, 1, 1, 2, 3]),
            "stream": random.random() < 0.5,
            "temperature": random.choice([0, 1]),
            "seed": random.randrange(1000),
        }
        if random.random() < 0.3:
            fields["stop"] = [" th", "a", "e"]
        return fields

    def _ask(self, random: Random) -> None:
        fields = self._fields(random) | {"prompt": " ".join(random.choices(WORDS, k=random.randrange(1, 60)))}
        if random.random() < 0.3:
            fields |= {"logprobs": random.choice([0, 1, 5]), "echo": random.random() < 0.5}
        self._tell(fields, "/v1/completions")

    def _chat(self, random: Random) -> None:
        messages = [{"role": "user", "content": " ".join(random.choices(WORDS, k=12))}]
        fields = self._fields(random) | {"messages": messages}
        if random.random() < 0.3:
            fields |= {"logprobs": True, "top_logprobs": 3}
        self._tell(fields, "/v1/chat/completions")

    def _err(self, random: Random) -> None:
        wrong: list[dict[str, Any]] = [
            {"n": 0},
            {"temperature": "hot"},
            {"prompt": [10**6]},
            {"prompt": "x" * 99_999},
        ]
        self._tell({"prompt": "x"} | random.choice(wrong), "/v1/completions")

    def _tell(self, fields: dict[str, Any], path: str) -> None:
        ending = ask(self.server.port, fields, path=path, seconds=60)
        name = ending.how if ending.how != "error" else f"error {ending.code or ending.status}"
        refused = ending.how == "error" and (ending.code in EXPECTED_CODES or ending.status == 400)
        known = ending.how == "complete" or refused
        self._note(name, "" if known else repr(ending))
        if ending.status == 503:
            time.sleep(0.1)

    def _leave(self, random: Random) -> None:
        """Go in mid-stream, politely or not."""
        with connections(self.server, 1) as (client,):
            client.sendall(
                request_bytes({"prompt": "the", "max_tokens": 400, "ignore_eos": True, "stream": True})
            )
            if client.recv(12) and random.random() < 0.5:
                reset(client)
        self._note("left")

    def _stall(self, random: Random) -> None:
        """Read nothing for a while, then go."""
        with connections(self.server, 1, receive=4096) as (client,):
            body = {"prompt": "the", "max_tokens": 300, "ignore_eos": True, "stream": True, "logprobs": 5}
            client.sendall(request_bytes(body))
            client.recv(1)
            self._over.wait(random.random())
        self._note("stalled")


@dataclass(slots=True)
class Verdict:
    """What a soak found."""

    asked: int = 0
    faults: list[str] = field(default_factory=list)


def fill_threads(server: RunningServer) -> None:
    """Let every request thread be started: they are kept, and their number is compared."""
    slow = request_bytes({"prompt": "the cat " * 3000}, "/tokenize", "Connection: close\r\n")
    for _ in range(3):
        with connections(server, 80) as clients:
            for client in clients:
                client.sendall(slow)
            for client in clients:
                while client.recv(2**20):
                    pass


def settle(server: RunningServer) -> None:
    """Wait until it serves and nothing runs."""
    server.wait_ready()
    eventually(lambda: server.health()["outstanding"] == 0, 30)
    time.sleep(3)


def hurt(server: RunningServer, number: int) -> str:
    """Kill its engine, or stop it, in turns."""
    with suppress(ProcessLookupError, IndexError):
        kind = (signal.SIGKILL, signal.SIGSTOP)[number % 2]
        os.kill(engines_of(server)[0], kind)
        return kind.name
    return "nothing: it is being replaced"


def soak(server: RunningServer, *, seconds: float, clients: int, every: float) -> Verdict:
    """Traffic for so long, with a fault `every` so many seconds; what is left must be what was there."""
    verdict = Verdict()
    worker = processes_of(server)[1]
    fill_threads(server)
    warm_up = Traffic(server, clients)
    time.sleep(min(60.0, seconds / 6))
    hurt(server, 0)
    time.sleep(1)
    warm_up.stop()
    settle(server)
    before, threads, counted = Belongings.of(server), worker.num_threads(), told_ends(server)
    print(f"idle, warm: {before}, {threads} threads")
    samples, traffic = Samples(server, worker), Traffic(server, clients)
    pause, until = max(1.0, seconds / 60), time.monotonic() + seconds
    next_fault, number = time.monotonic() + every / 2, 0
    while time.monotonic() < until:
        samples.take()
        if time.monotonic() >= next_fault:
            number, next_fault = number + 1, next_fault + every
            print(f"engine: {hurt(server, number)}", flush=True)
        time.sleep(pause)
    traffic.stop()
    settle(server)
    after = Belongings.of(server)
    verdict.asked = sum(traffic.counts.values())
    verdict.faults = [*warm_up.faults, *traffic.faults, *samples.growth()]
    print(f"idle, at the end: {after}, {worker.num_threads()} threads; {number} faults")
    print(f"{verdict.asked} requests: {dict(sorted(traffic.counts.items()))}")
    if not worker.is_running() or processes_of(server)[1].pid != worker.pid:
        verdict.faults.append("the HTTP process was replaced")
    if after != before:
        verdict.faults.append(f"idle it held {before}, and holds {after}")
    if worker.num_threads() != threads:
        verdict.faults.append(f"idle it had {threads} threads, and has {worker.num_threads()}")
    if told_ends(server) - counted != verdict.asked:
        verdict.faults.append(
            f"{verdict.asked} requests were sent, {told_ends(server) - counted} told to have ended"
        )
    return verdict


def settings_of(directory: Path, model: str) -> dict[str, str]:
    (directory / "template").write_text(TEMPLATE)
    return SETTINGS | {"MODEL": model, "MODEL_CHAT_TEMPLATE": str(directory / "template")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--fault-every", type=float, default=180, help="seconds between two faults")
    parser.add_argument(
        "--model", default="tiny", help="tiny, or what MODEL takes; empty for the default model"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tiny = chosen.model == "tiny"
        model = str(save_tiny(directory / "model", eos=None)) if tiny else chosen.model
        with running_server(directory / "log", **settings_of(directory, model)) as server:
            server.wait_ready()
            every = min(chosen.fault_every, chosen.minutes * 60 / 3)
            verdict = soak(server, seconds=chosen.minutes * 60, clients=chosen.clients, every=every)
    for fault in verdict.faults[:20]:
        print(f"broken: {fault}")
    print("broken" if verdict.faults else "all bounds hold")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())

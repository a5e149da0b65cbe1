"""A closed loop of streaming requests: so many clients, each with its next request when its last one ends.

aiohttp parses HTTP in C: the client shares the cores with what it measures. Every request has a connection of
its own, as some servers close theirs after a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

IGNORE_EOS = {"ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server."""

    name: str
    url: str
    """Up to and without /v1."""
    model: str
    key: str = ""
    fields: Mapping[str, Any] = field(default_factory=IGNORE_EOS.copy)
    """What makes it go on past the end of a text: there is no field that all servers know."""


def add_targets(parser: argparse.ArgumentParser) -> None:
    """The options that name other servers."""
    parser.add_argument("--against", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--against-model", default="default", help="the model's name at the other servers")
    parser.add_argument(
        "--fields",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help='fields that make a server go on past the end of a text, if not {"ignore_eos": true}',
    )


def targets(options: argparse.Namespace) -> list[Target]:
    """The other servers that were named."""
    fields = {name: json.loads(text) for name, _, text in (entry.partition("=") for entry in options.fields)}
    return [
        Target(name, url.rstrip("/"), options.against_model, fields=fields.get(name, IGNORE_EOS))
        for name, _, url in (entry.partition("=") for entry in options.against)
    ]


@dataclass(slots=True)
class Stream:
    """When one request's events arrived, in seconds from its start."""

    started: float = 0.0
    """By `time.perf_counter`."""
    events: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0

    @property
    def gaps(self) -> list[float]:
        """Between one event and the next."""
        return [after - before for before, after in zip(self.events, self.events[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Load:
    """All requests of one run."""

    streams: tuple[Stream, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(stream.tokens for stream in self.streams) / self.seconds


def run(target: Target, prompts: Iterator[str], *, clients: int, waves: int, tokens: int) -> Load:
    """`clients` x `waves` requests of `tokens` output tokens each, `clients` of them at any time.

    Raises RuntimeError for a request that fails, or gets fewer tokens than it asked for.
    """
    return asyncio.run(_run(target, prompts, clients, waves, tokens))


async def _run(target: Target, prompts: Iterator[str], clients: int, waves: int, tokens: int) -> Load:
    async with connect(target) as session:

        async def client() -> list[Stream]:
            return [await follow(session, target, next(prompts), tokens) for _ in range(waves)]

        started = time.perf_counter()
        groups = await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - started
    return Load(tuple(stream for group in groups for stream in group), seconds)


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """A session for `follow`."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        yield session


async def follow(
    session: aiohttp.ClientSession,
    target: Target,
    prompt: str,
    tokens: int,
    *,
    stream: Stream | None = None,
    **fields: Any,
) -> Stream:
    """Ask for so many tokens and note when they come, in `stream` if one is given; `fields` of the request.

    Raises RuntimeError if it fails, or gets fewer.
    """
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.fields,
        **fields,
    }
    stream = stream or Stream()
    started = stream.started = time.perf_counter()
    async with session.post(f"{target.url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{target.name}: {response.status} {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                _note(stream, json.loads(line[6:]), time.perf_counter() - started, target)
    # A server that tells no usage sends a token an event.
    stream.tokens = stream.tokens or len(stream.events)
    if stream.tokens < tokens:
        raise RuntimeError(f"{target.name}: {stream.tokens} of {tokens} tokens")
    return stream


def _note(stream: Stream, event: dict[str, Any], at: float, target: Target) -> None:
    if "error" in event:
        raise RuntimeError(f"{target.name}: {event['error']}")
    # Bytes of an unfinished character make an event without text; it is no less a token.
    if event.get("choices"):
        stream.events.append(at)
    if usage := event.get("usage"):
        stream.tokens = usage["completion_tokens"]
        stream.prompt_tokens = usage["prompt_tokens"]

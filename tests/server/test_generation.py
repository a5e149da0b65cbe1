"""From a text stream to server-sent events: pauses, ends and failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from basaran_ops.errors import EngineFailed, StreamClosed
from basaran_ops.outputs import SequenceOutput
from basaran_ops.pool import GenerationPool, SequenceWork, StreamOutput
from basaran_ops.sampling_params import SamplingParams
from basaran_ops.server import generation, sse
from basaran_ops.text.tokenizer import Tokenizer
from basaran_ops.text_stream import Choice, TextOutput, TextStream

from ..tiny_models import tiny_tokenizer


class Stream:
    """A text stream that yields what it was given, and raises what is an error."""

    def __init__(self, *steps: list[TextOutput] | Exception) -> None:
        self.steps = steps
        self.idle: float | None = None

    def outputs(self, idle: float | None = None) -> Iterator[list[TextOutput]]:
        self.idle = idle
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            yield step


def sent(*steps: list[TextOutput] | Exception, last: bool = False) -> list[bytes]:
    def chunk(output: TextOutput) -> dict[str, Any]:
        return {"text": output.text}

    stream = cast("TextStream", Stream(*steps))
    return list(generation._events(stream, chunk, (lambda: {"usage": 1}) if last else None))


def test_outputs_that_came_together_are_sent_together_as_events_of_their_own() -> None:
    assert sent([TextOutput(0, "a"), TextOutput(1, "b\n\n")], last=True) == [
        b'data: {"text":"a"}\n\ndata: {"text":"b\\n\\n"}\n\n',
        b'data: {"usage":1}\n\n',
        b"data: [DONE]\n\n",
    ]


def test_a_pause_is_filled_with_a_comment() -> None:
    assert sent([], [TextOutput(0, "a")]) == [
        b": keep-alive\n\n",
        b'data: {"text":"a"}\n\n',
        b"data: [DONE]\n\n",
    ]
    stream = Stream([])
    list(generation._events(cast("TextStream", stream), lambda output: {}, None))
    assert stream.idle == sse.KEEP_ALIVE_SECONDS < 30


def test_a_failure_in_mid_stream_is_an_event_and_then_done() -> None:
    text, failure, *rest = sent([TextOutput(0, "a")], EngineFailed("the engine died"), [TextOutput(0, "b")])
    assert text == b'data: {"text":"a"}\n\n'
    assert failure == (
        b'data: {"error":{"message":"the engine died","type":"server_error","param":null,'
        b'"code":"engine_failed"}}\n\ndata: [DONE]\n\n'
    )
    assert rest == []


def test_a_defect_in_mid_stream_is_told_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    (failure,) = sent(KeyError("a secret"))
    assert b"secret" not in failure
    assert b'"code":"internal_error"' in failure
    assert failure.endswith(sse.DONE)
    assert "a request failed unexpectedly" in caplog.text


def test_to_a_client_that_has_left_nothing_more_is_said() -> None:
    assert sent([TextOutput(0, "a")], StreamClosed()) == [b'data: {"text":"a"}\n\n']


class SilentTokens:
    """A token stream whose tokens come all the time and have no text."""

    def __init__(self, count: int) -> None:
        self.left = count

    def take(self, timeout: float | None = None) -> list[StreamOutput] | None:
        time.sleep(0.01)
        if self.left == 0:
            return []
        self.left -= 1
        reason = "length" if self.left == 0 else None
        return [StreamOutput(0, SequenceOutput(1, (0,), reason))]  # type: ignore[arg-type]

    def cancel(self, index: int) -> None: ...


class SilentPool:
    def submit(self, work: object) -> SilentTokens:
        return SilentTokens(40)

    def release(self, stream: object) -> None: ...


def test_a_pause_in_the_text_is_filled_though_tokens_come() -> None:
    work = SequenceWork((5,), SamplingParams(max_tokens=40), None)
    silent = Choice(work, Tokenizer(tiny_tokenizer()), "x", echo=False, separate=False)
    stream = TextStream(cast("GenerationPool", SilentPool()), [silent], 1)
    outputs = list(stream.outputs(idle=0.1))
    assert 2 <= outputs.count([]) <= 6
    assert outputs[-1][0].finish_reason == "length"

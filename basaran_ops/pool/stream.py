"""What the consumer of one request iterates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ..errors import BasaranError, StreamClosed
from ..outputs import SequenceOutput


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """One step's output for one of the request's sequences."""

    index: int
    """Which sequence: its place in the request."""
    output: SequenceOutput


class TokenStream:
    """The outputs of a request's sequences, in the order the engines made them.

    Replicas put, and never wait. One consumer takes. Anyone may close, any number of times.
    """

    def __init__(self, size: int, cancel: Callable[[TokenStream, int | None], None]) -> None:
        """`cancel(stream, index)` ends one sequence at its engine, or all where index is None."""
        self._queue: SimpleQueue[StreamOutput | BasaranError] = SimpleQueue()
        self._live = size
        self._cancel = cancel
        self._closed = False
        self._failure: BasaranError | None = None
        """Taken with outputs, which go first."""
        self.submitted_at = time.monotonic()
        self.begun = False
        """Whether it has had an output."""

    @property
    def closed(self) -> bool:
        return self._closed

    def take(self, timeout: float | None = None) -> list[StreamOutput] | None:
        """Wait for an output and take with it whatever else is there.

        Returns [] once every sequence has ended, None if `timeout` seconds pass. Raises StreamClosed after
        close(), or the error that ended the request.
        """
        if self._closed:
            raise StreamClosed
        if self._live == 0:
            return []
        try:
            outputs = [self._accept(self._failure or self._queue.get(timeout=timeout))]
        except Empty:
            return None
        while self._live and not self._queue.empty():
            event = self._queue.get_nowait()
            if isinstance(event, BasaranError):
                # Raised by the next call. Not put back: another may be there, and the first counts.
                self._failure = event
                break
            outputs.append(self._accept(event))
        return outputs

    def cancel(self, index: int) -> None:
        """End one sequence early: a stop string matched. Its last output still comes."""
        self._cancel(self, index)

    def close(self) -> None:
        """End all sequences and wake the consumer. Idempotent, never blocks, from any thread."""
        if not self._closed:
            self._closed = True
            self._cancel(self, None)
            self._queue.put(StreamClosed())

    def put(self, output: StreamOutput) -> None:
        """Hand over an output. Called by replicas."""
        self.begun = True
        self._queue.put(output)

    def fail(self, error: BasaranError) -> None:
        """End the request with an error. Called by the pool."""
        self._queue.put(error)

    def _accept(self, event: StreamOutput | BasaranError) -> StreamOutput:
        if isinstance(event, BasaranError):
            self._live = 0
            self.close()
            raise event
        if event.output.finish_reason is not None:
            self._live -= 1
        return event

"""The interface between a replica and the place its engine runs in."""

from __future__ import annotations

from typing import Protocol

from .messages import FromEngine, ToEngine


class Transport(Protocol):
    """A started engine. `receive` and `close` are for the replica's own thread, the rest for any."""

    def send(self, message: ToEngine) -> None:
        """Queue a message. Never blocks; lost if the engine is gone."""
        ...

    def receive(self) -> FromEngine:
        """Wait for a message. Raises EOFError once the engine is gone."""
        ...

    def stop(self) -> None:
        """Make the engine end; `receive` then raises EOFError."""
        ...

    def kill(self) -> None:
        """End the engine at once, whatever it is doing; `receive` then raises EOFError."""
        ...

    def close(self) -> str:
        """Wait for the engine's end and free what it held. Returns how it ended."""
        ...

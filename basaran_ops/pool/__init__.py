"""The generation pool: all threads, queues and engine processes, and the only lock."""

from .pool import GenerationPool, PoolStatus, SequenceWork
from .process_transport import ProcessTransport
from .replica import ReplicaStatus
from .stream import StreamOutput, TokenStream
from .thread_transport import ThreadTransport

__all__ = [
    "GenerationPool",
    "PoolStatus",
    "ProcessTransport",
    "ReplicaStatus",
    "SequenceWork",
    "StreamOutput",
    "ThreadTransport",
    "TokenStream",
]

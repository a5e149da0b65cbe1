"""Frozen records that travel from an engine to whoever listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model thought at one position: log-softmax of its own logits, before anything changes them."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one step did to one sequence. The output with a finish_reason is the sequence's last."""

    sequence_id: int
    token_ids: tuple[int, ...]
    """New tokens, in order; the end-of-sequence token included."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each new token, where the sequence asks for them."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """The next of the prompt's tokens, in order, the prompt's first token left out: nothing precedes it."""
    cached_tokens: int = 0
    """With the first new token: how many of the prompt's tokens an earlier sequence had computed."""
    scheduled_at: float | None = None
    """With its first output: when its first step began, in seconds of time.monotonic(), which all processes
    of a machine share.
    """
    error: str | None = None
    """Set exactly when finish_reason is "error"."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's state after a step."""

    step: int = 0
    """Steps done since the engine started."""
    batch_size: int = 0
    """Sequences in the last step."""
    batch_tokens: int = 0
    """Tokens, prompt and generated, that the last step's forward pass took."""
    running: int = 0
    """Sequences holding a slot."""
    waiting: int = 0
    """Sequences queued for a slot."""
    latest: int = 0
    """Highest id of a sequence that the engine was given, 0 if none; ids rise."""
    oldest: int = 0
    """Lowest id of those that run or wait; 0 without any."""
    cached_tokens: int = 0
    """Tokens of running sequences in the KV cache."""
    prefix_queries: int = 0
    """Prompt tokens looked for in what earlier sequences computed, since the engine started."""
    prefix_hits: int = 0
    """Of those, tokens that were found."""
    drafted_tokens: int = 0
    """Tokens that were guessed and checked, since the engine started."""
    accepted_tokens: int = 0
    """Of those, tokens that came true."""
    out_of_memory: int = 0
    """Times that the device had no memory left for a step, since the engine started."""
    memory_used: int = 0
    """Bytes of the device's memory that the engine holds; on a CPU, of the machine's."""
    memory_total: int = 0
    """Bytes that the device has."""
    duration: float = 0.0
    """Seconds the last step took."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine knows of its model once it is loaded."""

    tokenizer_path: str
    """Directory that AutoTokenizer reads."""
    context_length: int
    """Tokens of prompt and completion together that a sequence may hold."""
    vocab_size: int
    """Rows of the embedding: token ids are below it."""
    eos_token_ids: frozenset[int]
    dtype: str
    device: str
    runner: str
    slots: int
    completion_length: int | None = None
    """Tokens that a completion may hold where it does not share the prompt's context: of an encoder-decoder
    model. None for others.
    """
    output_size: int | None = None
    """Tokens that can be generated, where those are others than the vocabulary's."""
    scores_prompts: bool = True
    """Whether prompts can have log-probabilities: an encoder-decoder model's decoder never reads them."""
    adapters: tuple[str, ...] = ()
    """Names of its adapters."""
    load_seconds: float = field(default=0.0, compare=False)

    def room_after(self, prompt_length: int) -> int:
        """Tokens that a completion may have after a prompt of so many; below 1 for none, or no room for the
        prompt itself.
        """
        left = self.context_length - prompt_length
        return left if self.completion_length is None or left < 0 else self.completion_length

"""How one request wants its tokens chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .errors import InvalidRequest

MAX_SEED = 2**63 - 1

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0, 2),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "presence_penalty": (-2, 2),
        "frequency_penalty": (-2, 2),
        "repetition_penalty": (0.01, 10),
    }
)
"""Least and largest value of each parameter that is a real number, both allowed."""

MAX_BIAS = 100

MAX_COUNT = 2**31 - 1

GREEDY_TEMPERATURE = 1e-4
"""A lower temperature is greedy: logits divided by it may leave the range of float32."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters shared by all choices of a request; names and defaults are OpenAI's.

    Raises InvalidRequest naming the parameter for a value outside its range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    """0 is greedy; otherwise logits are divided by it."""
    top_p: float = 1.0
    """Nucleus sampling (Holtzman et al. 2020). 0 is greedy."""
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    """Drop tokens less probable than min_p times the likeliest (Nguyen et al. 2024)."""
    n: int = 1
    seed: int | None = None
    """Choice j draws from a generator seeded with seed + j; None is seeded by the system."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a choice as an EOS token does."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """Until a choice has so many tokens it cannot end by EOS, stop tokens or stop strings."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Subtracted from a generated token's logit: presence once, frequency for each occurrence."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt and output (Keskar et al. 2019)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    logprobs: int | None = None
    """Likeliest tokens told with each token's log-probability; None tells none."""
    ranked: bool = False
    """Score what is generated, to compare choices by, whether or not that is told."""
    prompt_logprobs: bool = False
    """Score the prompt's tokens too. Needs logprobs."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            _require(low <= getattr(self, name) <= high, name, f"must be between {low:g} and {high:g}")
        _require(0 <= self.max_tokens <= MAX_COUNT, "max_tokens", f"must be between 0 and {MAX_COUNT}")
        _require(
            0 <= self.top_k <= MAX_COUNT,
            "top_k",
            f"must be between 0 (which keeps every token) and {MAX_COUNT}",
        )
        _require(self.n >= 1, "n", "must be at least 1")
        _require(
            self.seed is None or -MAX_SEED - 1 <= self.seed <= MAX_SEED,
            "seed",
            "must be a 64-bit signed integer",
        )
        _require(all(self.stop), "stop", "must not hold an empty string")
        _require(self.min_tokens >= 0, "min_tokens", "must be at least 0")
        _require(self.min_tokens <= self.max_tokens, "min_tokens", "must be at most max_tokens")
        _require(
            all(abs(bias) <= MAX_BIAS for _, bias in self.logit_bias),
            "logit_bias",
            f"must be between -{MAX_BIAS} and {MAX_BIAS}",
        )
        _require(self.logprobs is None or self.logprobs >= 0, "logprobs", "must be at least 0")

    @property
    def greedy(self) -> bool:
        """Whether every token is the argmax."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_p == 0 or self.top_k == 1

    @property
    def adjusts_logits(self) -> bool:
        """Whether a token is chosen from other logits than the model's own."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return any(penalties) or bool(self.logit_bias) or self.min_tokens > 0

    def seed_of(self, choice: int) -> int | None:
        """The seed of the given choice (0 .. n-1), or None to seed from the system."""
        return None if self.seed is None else self.seed + choice


def _require(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidRequest(f"{param} {rule}", param=param)

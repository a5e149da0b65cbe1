"""How long a context is: as asked, or as model and memory allow."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ..errors import ModelLoadError

log = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 4096
"""For a model that does not say how long a text it takes."""

LENGTH_STEP = 256

MINIMUM_CONTEXT_LENGTH = 512
"""Less than this is refused unless asked for by name."""


@dataclass(frozen=True, slots=True)
class ContextWish:
    """What bounds the context before memory does."""

    slots: int
    asked: int | None
    """ENGINE_CONTEXT_LENGTH; None for as much as fits."""
    model_length: int | None
    """What the model was made for; None where it does not say."""
    memory_fraction: float
    """Share of the free memory that what sequences keep may take."""


def fit_context(wish: ContextWish, *, slot_token_bytes: int, slot_bytes: int, available: int) -> int:
    """Tokens that each of `wish.slots` sequences may hold.

    A sequence takes `slot_bytes` and for each token `slot_token_bytes`; `available` bytes are free. Raises
    ModelLoadError where that is less than was asked for, or too little to be of use.
    """
    budget = int(available * wish.memory_fraction) - slot_bytes * wish.slots
    per_token = slot_token_bytes * wish.slots
    wanted = wish.model_length or DEFAULT_CONTEXT_LENGTH
    fits = budget // per_token if per_token else (max(wanted, wish.asked or 0) if budget > 0 else 0)
    if wish.asked is not None:
        if wish.model_length is not None and wish.asked > wish.model_length:
            raise ModelLoadError(
                f"ENGINE_CONTEXT_LENGTH={wish.asked} is more than the model's {wish.model_length} positions"
            )
        if wish.asked > fits:
            raise ModelLoadError(_does_not_fit(wish, wish.asked, per_token, budget))
        return wish.asked
    # In round steps, so that the same machine gives the same length each time.
    length = wanted if fits >= wanted else fits // LENGTH_STEP * LENGTH_STEP
    least = min(wanted, MINIMUM_CONTEXT_LENGTH)
    if length < least:
        raise ModelLoadError(_does_not_fit(wish, least, per_token, budget))
    if length < wanted:
        log.warning(
            "context length is %d of the model's %d tokens: %d slots take %s a token, and %s may be "
            "used; lower ENGINE_SLOTS for a longer context",
            length,
            wanted,
            wish.slots,
            _size(per_token),
            _size(budget),
        )
    return length


def _does_not_fit(wish: ContextWish, length: int, per_token: int, budget: int) -> str:
    return (
        f"ENGINE_SLOTS={wish.slots} sequences of {length} tokens need {_size(per_token * length)} for keys "
        f"and values, but only {_size(budget)} may be used ({wish.memory_fraction:.0%} of what is free): "
        "lower ENGINE_SLOTS or ENGINE_CONTEXT_LENGTH, or raise ENGINE_KV_FRACTION"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**10:.0f} KiB"

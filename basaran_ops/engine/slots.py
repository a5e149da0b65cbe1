"""The slots of a KV cache: which are free, and what is still in them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in a free slot."""

    tokens: Seq[int] = ()
    """The tokens whose keys and values are there."""
    adapter: str | None = None
    """The adapter that computed them: another one's are other keys and values."""


class Slots:
    """Hands out slots. A free one keeps the tokens whose keys and values its last sequence left, for the
    next that begins alike and has the same adapter.

    `_free` maps each free slot to what it keeps, the longest unused slot first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = dict.fromkeys(range(count), Kept())

    def __repr__(self) -> str:
        return f"<Slots free={len(self._free)}/{self.count}>"

    @property
    def free(self) -> frozenset[int]:
        return frozenset(self._free)

    def find(self, wanted: Kept) -> tuple[int, int]:
        """The free slot whose tokens begin most like those wanted, and how many are the same. One is free."""
        return max(
            ((slot, _shared(wanted, kept)) for slot, kept in self._free.items()),
            key=lambda found: found[1],
        )

    def kept(self, slot: int) -> int:
        """Tokens left in a free slot."""
        return len(self._free[slot].tokens)

    def take(self, slot: int) -> int:
        """Take this free slot."""
        del self._free[slot]
        return slot

    def take_oldest(self, *, but: int | None = None) -> int:
        """Take the lowest empty slot, else the one whose tokens were of no use for the longest time. `but` is
        spared if another is free.
        """
        others = {slot: kept for slot, kept in self._free.items() if slot != but} or self._free
        empty = [slot for slot, kept in others.items() if not kept.tokens]
        # The lowest: decode rows stay neighbours, so attention covers them in few calls.
        return self.take(min(empty) if empty else next(iter(others)))

    def give_back(self, slot: int, kept: Kept) -> None:
        """Free a slot that now holds this."""
        assert slot not in self._free
        self._free[slot] = kept


def _shared(wanted: Kept, kept: Kept) -> int:
    return common_prefix(wanted.tokens, kept.tokens) if wanted.adapter == kept.adapter else 0


def common_prefix(left: Seq[int], right: Seq[int]) -> int:
    """How many leading tokens two sequences share."""
    low, high = 0, min(len(left), len(right))
    if high == 0 or left[0] != right[0]:
        return 0
    # Slices are compared at C speed; a loop over tokens is not.
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

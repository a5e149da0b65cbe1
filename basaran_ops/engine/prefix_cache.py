"""What is computed once for all sequences that begin alike."""

from __future__ import annotations

from collections.abc import Iterable

from .sequence import Copy, Sequence
from .slots import Kept, Slots, common_prefix

LEAST_SHARED = 16
"""Tokens below which sharing is not worth a copy: two small ones a layer, which take as long as computing a
few tokens.
"""


class PrefixCache:
    """Gives sequences their slots, and with them what others, of the same adapter, have computed of the same
    beginning.

    A prompt is compared with what finished sequences left in free slots and with what runs. From a free slot
    it goes on in place where most of that is its own too, else the shared part is copied. Behind a running
    sequence that is still computing the shared part it waits: n choices of a prompt compute it once.
    """

    def __init__(self, slots: int, *, enabled: bool) -> None:
        self.slots = Slots(slots)
        self.queries = 0
        """Prompt tokens of all sequences placed that could have shared some."""
        self.hits = 0
        """Prompt tokens that were shared."""
        self._enabled = enabled
        self._copies: list[Copy] = []

    def place(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """Give a sequence a slot; one is free."""
        # Scores come from logits, so a prompt that wants them must be computed.
        if not self._enabled or sequence.scores_prompt:
            sequence.slot = self.slots.take_oldest()
            return
        self.queries += sequence.prompt_length
        leader, ahead = self._find_leader(sequence, running)
        slot, kept = self.slots.find(_wanted(sequence))
        if max(ahead, kept) < LEAST_SHARED:
            sequence.slot = self.slots.take_oldest()
        elif ahead > kept:
            sequence.slot = self.slots.take_oldest()
            sequence.leader, sequence.shared = leader, ahead
        elif 2 * kept >= self.slots.kept(slot):
            sequence.slot = self.slots.take(slot)
            self._share(sequence, kept)
        else:
            sequence.slot = self.slots.take_oldest(but=slot)
            self._copy(slot, sequence, kept)

    def catch_up(self, sequence: Sequence) -> bool:
        """Whether a running sequence can compute now; if not, it waits for its leader. Takes over what the
        leader has computed once that is all they share.
        """
        leader = sequence.leader
        if leader is None:
            return True
        if leader.slot is not None and leader.num_computed < sequence.shared:
            return False
        sequence.leader = None
        if leader.slot is not None:
            self._copy(leader.slot, sequence, sequence.shared)
            return True
        # It has ended, and left its tokens in a slot which another may have taken since.
        if self.slots.free:
            slot, kept = self.slots.find(_wanted(sequence))
            if kept >= LEAST_SHARED:
                self._copy(slot, sequence, kept)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take back a sequence's slot, and keep what it has computed."""
        assert sequence.slot is not None
        keeps = self._enabled and not sequence.spoiled
        tokens = sequence.tokens[: sequence.num_computed] if keeps else ()
        self.slots.give_back(sequence.slot, Kept(tokens, sequence.adapter))
        sequence.slot = None

    def take_copies(self) -> tuple[Copy, ...]:
        """What must be copied before the next step, in this order."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def _find_leader(self, sequence: Sequence, running: Iterable[Sequence]) -> tuple[Sequence | None, int]:
        best, most = None, 0
        for other in running:
            # One that is scored goes at a slower pace than those that follow could.
            fit = other.adapter == sequence.adapter and not other.scores_prompt
            if fit and (shared := common_prefix(sequence.shareable, other.tokens)) > most:
                best, most = other, shared
        return best, most

    def _copy(self, source: int, sequence: Sequence, length: int) -> None:
        assert sequence.slot is not None
        if source != sequence.slot:
            self._copies.append(Copy(source, sequence.slot, length))
        self._share(sequence, length)

    def _share(self, sequence: Sequence, length: int) -> None:
        sequence.num_computed = sequence.num_cached = length
        self.hits += length


def _wanted(sequence: Sequence) -> Kept:
    return Kept(sequence.shareable, sequence.adapter)

"""What a model's generation config demands of every text, whatever the request asks."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Seq

import torch
from transformers import GenerationConfig, PreTrainedModel

from .sequence import Sequence
from .transfer import Places

log = logging.getLogger(__name__)

NEGATIVE_INFINITY = float("-inf")


class Constraints:
    """no_repeat_ngram_size, encoder_no_repeat_ngram_size, bad_words_ids, min_length, forced_bos_token_id,
    forced_eos_token_id, suppress_tokens and begin_suppress_tokens, in the order in which `generate()` does.

    min_new_tokens counts too. sequence_bias, and what only beams or other ways of decoding heed, do not.

    A config's temperature, top_p, top_k and penalties are a matter of taste: they are the request's, with
    OpenAI's defaults.
    """

    def __init__(
        self,
        config: GenerationConfig | None = None,
        eos_token_ids: Iterable[int] = (),
        decoder_start: int | None = None,
        size: int | None = None,
    ) -> None:
        """`size` is the number of tokens that can be generated: ids beyond it are left out, with a warning.
        `decoder_start` is the token that the decoder of an encoder-decoder model begins with; None for
        models whose output follows their prompt.
        """
        config = config or GenerationConfig()
        self._size = size
        self._eos = self._known(list(eos_token_ids))
        self._decoder_start = decoder_start
        self._min_length = config.min_length or 0
        self._forced_bos = None if decoder_start is None else config.forced_bos_token_id
        self._forced_eos = self._known(_ids(config.forced_eos_token_id))
        self._suppressed = self._known(_ids(config.suppress_tokens))
        self._suppressed_first = self._known(_ids(config.begin_suppress_tokens))
        self._encoder_ngram = 0 if decoder_start is None else config.encoder_no_repeat_ngram_size or 0
        self._min_new = config.min_new_tokens or 0
        self._ngram = config.no_repeat_ngram_size or 0
        self._bad_ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """The last tokens of bad words by those before it."""
        for word in config.bad_words_ids or []:
            if word and self._known(word) == word and not (len(word) == 1 and word[0] in self._eos):
                self._bad_ends[tuple(word[:-1])].append(word[-1])
        self._bad_lengths = sorted({len(beginning) for beginning in self._bad_ends})

    @property
    def active(self) -> bool:
        """Whether there are any."""
        return bool(
            self._ngram
            or self._bad_ends
            or self._encoder_ngram
            or self._suppressed
            or self._suppressed_first
            or self._forced_eos
            or self._forced_bos is not None
            or self._min_length
            or self._min_new
        )

    def apply(self, logits: torch.Tensor, *sequences: Sequence) -> None:
        """Change logits [sequences, vocab], float32, in place; one sequence's may be [vocab]."""
        logits = logits.view(len(sequences), logits.shape[-1])
        forced, hidden = Places(), Places()
        for row, sequence in enumerate(sequences):
            only, never = self._demands(sequence)
            forced.add(row, only)
            # An embedding may have more tokens than a model has logits for.
            hidden.add(row, [token for token in never if token < logits.shape[-1]])
        if forced:
            where, _ = forced.on(logits.device)
            logits[where[0]] = NEGATIVE_INFINITY
            logits[where] = 0.0
        if hidden:
            where, _ = hidden.on(logits.device)
            logits[where] = NEGATIVE_INFINITY

    def _demands(self, sequence: Sequence) -> tuple[list[int], list[int]]:
        """The only tokens that may come next, none for all; and those of them that may not."""
        ids, count, params = self._ids_of(sequence), sequence.num_output, sequence.params
        only: list[int] = []
        never: list[int] = []
        if self._encoder_ngram:
            never += _completions(sequence.tokens[: sequence.prompt_length], ids, self._encoder_ngram)
        if self._ngram:
            never += _completions(ids, ids, self._ngram)
        for length in self._bad_lengths:
            never += self._bad_ends.get(tuple(ids[max(0, len(ids) - length) :]), ())
        short = len(ids) < self._min_length or count < self._min_new
        if short and not params.ignore_eos:
            never += self._eos
        if self._forced_bos is not None and count == 0:
            only, never = [self._forced_bos], []
        if self._forced_eos and count == params.max_tokens - 1 and not params.ignore_eos:
            only, never = self._forced_eos, []
        never += self._suppressed
        if count == (0 if self._forced_bos is None else 1):
            never += self._suppressed_first
        return only, never

    def _known(self, ids: list[int]) -> list[int]:
        """Those that can be generated."""
        if self._size is None:
            return ids
        unknown = [token for token in ids if not 0 <= token < self._size]
        if unknown:
            log.warning("the generation config names tokens that the model does not have: %s", unknown)
        return [token for token in ids if 0 <= token < self._size]

    def _ids_of(self, sequence: Sequence) -> list[int]:
        if self._decoder_start is None:
            return sequence.tokens
        return [self._decoder_start, *sequence.tokens[sequence.prompt_length :]]


def decoder_start(model: PreTrainedModel) -> int | None:
    """The token that an encoder-decoder model's output begins with; None for other models."""
    if not model.config.is_encoder_decoder:
        return None
    config = model.generation_config
    start: int | list[int] | None = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    return start[0] if isinstance(start, list) else start


def _completions(text: list[int], ids: list[int], size: int) -> list[int]:
    """What followed in a text wherever the last size - 1 of ids were: each would repeat `size` tokens."""
    if size == 1:
        return text
    if len(ids) < size - 1:
        return []
    begun, last = ids[len(ids) - size + 1 :], ids[-1]
    return [
        text[end]
        for end in range(size - 1, len(text))
        if text[end - 1] == last and text[end - size + 1 : end] == begun
    ]


def _ids(value: int | Seq[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)

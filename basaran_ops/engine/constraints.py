"""What a model's generation config demands of every text, whatever the request asks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Seq

import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
)

from .sequence import Sequence

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
        words = [word for word in config.bad_words_ids or [] if self._known(word) == word]
        self._processors = _processors(config.no_repeat_ngram_size, words, self._eos)

    @property
    def active(self) -> bool:
        """Whether there are any."""
        return bool(
            self._processors
            or self._encoder_ngram
            or self._suppressed
            or self._suppressed_first
            or self._forced_eos
            or self._forced_bos is not None
            or self._min_length
            or self._min_new
        )

    def apply(self, logits: torch.Tensor, sequence: Sequence) -> None:
        """Change one sequence's logits [vocab], float32, in place."""
        ids = self._ids_of(sequence)
        given = torch.tensor([ids], device=logits.device)
        for processor in self._processors_of(sequence):
            logits.copy_(processor(given, logits[None])[0])
        short = len(ids) < self._min_length or sequence.num_output < self._min_new
        if short and not sequence.params.ignore_eos:
            logits[self._eos] = NEGATIVE_INFINITY
        if self._forced_bos is not None and sequence.num_output == 0:
            _force(logits, [self._forced_bos])
        last = sequence.num_output == sequence.params.max_tokens - 1
        if self._forced_eos and last and not sequence.params.ignore_eos:
            _force(logits, self._forced_eos)
        logits[self._suppressed] = NEGATIVE_INFINITY
        if sequence.num_output == (0 if self._forced_bos is None else 1):
            logits[self._suppressed_first] = NEGATIVE_INFINITY

    def _known(self, ids: list[int]) -> list[int]:
        """Those that can be generated."""
        if self._size is None:
            return ids
        unknown = [token for token in ids if not 0 <= token < self._size]
        if unknown:
            log.warning("the generation config names tokens that the model does not have: %s", unknown)
        return [token for token in ids if 0 <= token < self._size]

    def _processors_of(self, sequence: Sequence) -> list[LogitsProcessor]:
        if not self._encoder_ngram:
            return self._processors
        prompt = torch.tensor([sequence.tokens[: sequence.prompt_length]])
        return [*self._processors, EncoderNoRepeatNGramLogitsProcessor(self._encoder_ngram, prompt)]

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


def _processors(ngram: int | None, words: list[list[int]], eos: list[int]) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    if ngram:
        processors.append(NoRepeatNGramLogitsProcessor(ngram))
    if words:
        processors.append(NoBadWordsLogitsProcessor(words, torch.tensor(eos or [-1])))
    return processors


def _ids(value: int | Seq[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _force(logits: torch.Tensor, tokens: list[int]) -> None:
    logits.fill_(NEGATIVE_INFINITY)
    logits[tokens] = 0.0

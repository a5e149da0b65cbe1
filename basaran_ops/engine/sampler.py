"""From logits to tokens: one batched pass in which a row pays only for what it asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq

import torch

from ..sampling_params import SamplingParams
from .constraints import Constraints
from .sequence import Sequence
from .transfer import Places, send

CANDIDATES = 1024
"""Likeliest tokens looked at first for top_p."""

BLOCK = 128
"""Tokens whose highest logit is looked for at once; it divides the vocabularies of most models."""

FEW_ROWS = 4
"""Rows for which several calls cost more than one that is slower."""

MORE = 8
"""Times as many are looked at next, in the rows alone where these hold too little mass; then so many more."""

NEGATIVE_INFINITY = float("-inf")


class Sampler:
    """logit_bias, min_tokens, repetition, frequency and presence penalties, what the model's generation
    config demands, temperature, min_p, top_k and top_p, in that order.

    Each sequence draws from its own generator, one number a token, so its tokens do not depend on its
    neighbours in the batch.
    """

    def __init__(
        self,
        eos_token_ids: Iterable[int] = (),
        constraints: Constraints | None = None,
        *,
        separate: bool = False,
    ) -> None:
        """`separate`: a prompt's tokens are none of the completion's, as in encoder-decoder models."""
        self._separate = separate
        self._eos = tuple(eos_token_ids)
        self._constraints = constraints if constraints is not None and constraints.active else None

    def sample(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
        """One token per row of logits [rows, vocab], float32; sequences[i] owns row i. Logits stay as they
        are.
        """
        logits = self._adjust(logits, sequences)
        rows = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]
        drawing = [sequences[row] for row in rows]
        if len(rows) == len(sequences):
            return _draw(_truncate(logits, drawing), drawing).tolist()
        tokens = likeliest(logits)
        if rows:
            index = send(rows, logits.device)
            tokens[index] = _draw(_truncate(logits[index], drawing), drawing)
        return tokens.tolist()

    def _adjust(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
        adjusting = {
            row: sequence for row, sequence in enumerate(sequences) if sequence.params.adjusts_logits
        }
        if not adjusting and self._constraints is None:
            return logits
        logits = logits.clone()
        _add_biases(logits, adjusting)
        self._hide_ends(logits, adjusting)
        self._penalize_repetition(logits, adjusting)
        _penalize_frequency(logits, adjusting)
        if self._constraints is not None:
            self._constraints.apply(logits, *sequences)
        return logits

    def _hide_ends(self, logits: torch.Tensor, sequences: Mapping[int, Sequence]) -> None:
        places = Places()
        for row, sequence in sequences.items():
            params = sequence.params
            if sequence.num_output < params.min_tokens:
                places.add(row, (*params.stop_token_ids, *(() if params.ignore_eos else self._eos)))
        if places:
            where, _ = places.on(logits.device)
            logits[where] = NEGATIVE_INFINITY

    def _penalize_repetition(self, logits: torch.Tensor, sequences: Mapping[int, Sequence]) -> None:
        places = Places()
        for row, sequence in sequences.items():
            penalty = sequence.params.repetition_penalty
            if penalty != 1:
                tokens = sequence.tokens[sequence.prompt_length if self._separate else 0 :]
                seen = sorted(set(tokens))
                # An embedding may have more tokens than a model has logits for.
                seen = seen[: bisect_left(seen, logits.shape[-1])]
                places.add(row, seen, [penalty] * len(seen))
        if places:
            where, (penalties,) = places.on(logits.device)
            before = logits[where]
            logits[where] = torch.where(before > 0, before / penalties, before * penalties)


def _add_biases(logits: torch.Tensor, sequences: Mapping[int, Sequence]) -> None:
    places = Places()
    for row, sequence in sequences.items():
        if sequence.params.logit_bias:
            places.add(row, *zip(*sequence.params.logit_bias, strict=True))
    if places:
        where, (biases,) = places.on(logits.device)
        logits[where] += biases


def _penalize_frequency(logits: torch.Tensor, sequences: Mapping[int, Sequence]) -> None:
    places = Places()
    for row, sequence in sequences.items():
        frequency, presence = sequence.params.frequency_penalty, sequence.params.presence_penalty
        if sequence.counts and (frequency or presence):
            size = len(sequence.counts)
            counts = list(sequence.counts.values())
            places.add(row, list(sequence.counts), counts, [frequency] * size, [presence] * size)
    if places:
        where, (times, frequencies, presences) = places.on(logits.device)
        logits[where] -= times * frequencies + presences


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The first of each row's highest logits, [rows, vocab] -> [rows] int64; its first NaN if it has one."""
    rows, vocab = logits.shape
    if logits.device.type != "cpu" or rows < FEW_ROWS or vocab % BLOCK:
        return logits.argmax(dim=-1)
    # torch looks for a maximum several times as fast as for its place: it is looked for in one block.
    blocks = logits.reshape(rows, vocab // BLOCK, BLOCK)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    return block * BLOCK + blocks[torch.arange(rows), block].argmax(dim=-1)


def _draw(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Sample by inverting the cumulative distribution at one uniform number a row; [rows] int64."""
    # 23 bits, so that even the largest number times the total rounds to less than the total: rounding
    # cannot point past the last token that has any mass.
    numbers = [sequence.random.getrandbits(23) / 2**23 for sequence in sequences]
    uniform = _column(numbers, logits)
    cumulative = torch.softmax(logits, dim=-1).cumsum_(dim=-1)
    threshold = uniform * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    # A model whose logits are not numbers must not lead to a token outside its vocabulary.
    return torch.where(drawn < logits.shape[-1], drawn, logits.argmax(dim=-1))


def _truncate(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Divide by temperature, then set what min_p, top_k and top_p drop to -inf."""
    params = [sequence.params for sequence in sequences]
    if any(p.temperature != 1 for p in params):
        logits = logits / _column([p.temperature for p in params], logits)
    if any(p.min_p > 0 for p in params):
        # p < min_p * p_max, in logarithms; log 0 is -inf, which drops nothing.
        floor = logits.max(dim=-1, keepdim=True).values + _column([p.min_p for p in params], logits).log()
        logits = logits.masked_fill(logits < floor, NEGATIVE_INFINITY)
    rows = [row for row, p in enumerate(params) if 0 < p.top_k < logits.shape[-1] or p.top_p < 1]
    if rows:
        index = send(rows, logits.device)
        logits = logits.index_copy(0, index, _keep_top(logits[index], [params[row] for row in rows]))
    return logits


def _keep_top(logits: torch.Tensor, params: Seq[SamplingParams]) -> torch.Tensor:
    """Set all but each row's top_k tokens, and of those all but its nucleus, to -inf."""
    vocab = logits.shape[-1]
    limits = [p.top_k or vocab for p in params]
    size = min(vocab, max(CANDIDATES, *(limit for limit in limits if limit < vocab), 0))
    kept, undecided = _nucleus(logits, limits, params, size)
    while undecided:
        size = min(vocab, MORE * size)
        index = send(undecided, logits.device)
        own = [limits[row] for row in undecided], [params[row] for row in undecided]
        part, still = _nucleus(logits[index], *own, size)
        kept = kept.index_copy(0, index, part)
        undecided = [undecided[row] for row in still]
    return kept


def _nucleus(
    logits: torch.Tensor, limits: list[int], params: Seq[SamplingParams], size: int
) -> tuple[torch.Tensor, list[int]]:
    """Apply top_k and top_p among the `size` likeliest tokens of each row.

    Returns the logits, and the rows for which `size` candidates were not enough to decide.
    """
    vocab = logits.shape[-1]
    values, ids = logits.topk(size, dim=-1, sorted=True)
    ranks = torch.arange(size, device=logits.device)
    limit = send([min(limit, vocab) for limit in limits], logits.device)[:, None]
    values = values.masked_fill(ranks >= limit, NEGATIVE_INFINITY)
    # With top_k the candidates are all there is; without it the rest of the row has mass too.
    whole = torch.where(
        limit < vocab, values.logsumexp(dim=-1, keepdim=True), logits.logsumexp(dim=-1, keepdim=True)
    )
    probabilities = (values - whole).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = _column([p.top_p for p in params], logits)
    # A token stays if the mass before it is below top_p: the smallest set that reaches top_p.
    dropped = (before >= top_p) & (top_p < 1)
    dropped[:, 0] = False
    undecided = ((limit > size) & ~dropped[:, -1:])[:, 0]
    kept = torch.full_like(logits, NEGATIVE_INFINITY)
    kept.scatter_(-1, ids, values.masked_fill(dropped, NEGATIVE_INFINITY))
    return kept, undecided.nonzero()[:, 0].tolist()


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return send(values, like.device, like.dtype)[:, None]

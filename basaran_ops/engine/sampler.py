"""From logits to tokens: one batched pass in which a row pays only for what it asks."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import torch

from ..sampling_params import SamplingParams
from .constraints import Constraints
from .sequence import Sequence

CANDIDATES = 1024
"""Likeliest tokens looked at first for top_p; a full sort follows only where they hold too little mass."""

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
        tokens = logits.argmax(dim=-1)
        rows = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]
        if rows:
            drawing = [sequences[row] for row in rows]
            if len(rows) < len(sequences):
                index = torch.tensor(rows, device=logits.device)
                tokens[index] = _draw(_truncate(logits[index], drawing), drawing)
            else:
                tokens = _draw(_truncate(logits, drawing), drawing)
        return tokens.tolist()

    def _adjust(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
        rows = [
            row
            for row, sequence in enumerate(sequences)
            if self._constraints is not None or sequence.params.adjusts_logits
        ]
        if not rows:
            return logits
        logits = logits.clone()
        for row in rows:
            self._adjust_row(logits[row], sequences[row])
        return logits

    def _adjust_row(self, row: torch.Tensor, sequence: Sequence) -> None:
        """Change one sequence's logits [vocab] in place."""
        params = sequence.params
        if params.logit_bias:
            ids, biases = zip(*params.logit_bias, strict=True)
            row[list(ids)] += torch.tensor(biases, device=row.device)
        if sequence.num_output < params.min_tokens:
            row[[*params.stop_token_ids, *(() if params.ignore_eos else self._eos)]] = NEGATIVE_INFINITY
        if params.repetition_penalty != 1:
            tokens = sequence.tokens[sequence.prompt_length if self._separate else 0 :]
            seen = torch.tensor(sorted(set(tokens)), device=row.device, dtype=torch.long)
            logits = row[seen]
            penalty = params.repetition_penalty
            row[seen] = torch.where(logits > 0, logits / penalty, logits * penalty)
        if sequence.counts and (params.frequency_penalty or params.presence_penalty):
            generated = list(sequence.counts)
            counts = torch.tensor([sequence.counts[token] for token in generated], device=row.device)
            row[generated] -= counts * params.frequency_penalty + params.presence_penalty
        if self._constraints is not None:
            self._constraints.apply(row, sequence)


def _draw(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Sample by inverting the cumulative distribution at one uniform number a row; [rows] int64."""
    # 23 bits, so that even the largest number times the total rounds to less than the total: rounding
    # cannot point past the last token that has any mass.
    numbers = [sequence.random.getrandbits(23) / 2**23 for sequence in sequences]
    uniform = torch.tensor(numbers, dtype=torch.float32, device=logits.device)[:, None]
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
        index = torch.tensor(rows, device=logits.device)
        logits = logits.index_copy(0, index, _keep_top(logits[index], [params[row] for row in rows]))
    return logits


def _keep_top(logits: torch.Tensor, params: Seq[SamplingParams]) -> torch.Tensor:
    """Set all but each row's top_k tokens, and of those all but its nucleus, to -inf."""
    vocab = logits.shape[-1]
    limits = [p.top_k or vocab for p in params]
    size = min(vocab, max(CANDIDATES, *(limit for limit in limits if limit < vocab), 0))
    kept, enough = _nucleus(logits, limits, params, size)
    if not enough:
        kept, _ = _nucleus(logits, limits, params, vocab)
    return kept


def _nucleus(
    logits: torch.Tensor, limits: list[int], params: Seq[SamplingParams], size: int
) -> tuple[torch.Tensor, bool]:
    """Apply top_k and top_p among the `size` likeliest tokens of each row.

    Returns the logits and whether `size` candidates were enough to decide every row.
    """
    vocab = logits.shape[-1]
    values, ids = logits.topk(size, dim=-1, sorted=True)
    ranks = torch.arange(size, device=logits.device)
    limit = torch.tensor([min(limit, vocab) for limit in limits], device=logits.device)[:, None]
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
    undecided = (limit > size) & ~dropped[:, -1:]
    kept = torch.full_like(logits, NEGATIVE_INFINITY)
    kept.scatter_(-1, ids, values.masked_fill(dropped, NEGATIVE_INFINITY))
    return kept, not bool(undecided.any())


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

"""What the model thought: log-probabilities from its own logits, before anything changes them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from ..outputs import TokenLogprob
from .sequence import Batch


@dataclass(frozen=True, slots=True)
class Scores:
    """One sequence's log-probabilities from one step."""

    prompt: tuple[TokenLogprob, ...] = ()
    """Of the prompt tokens that the step's logits predict."""
    new: tuple[TokenLogprob, ...] = ()
    """Of the token it got."""


NO_SCORES = Scores()


def sampling_rows(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """The rows of a step's logits [rows, vocab] that get a token: [len(batch.sampling), vocab]."""
    rows, end = [], 0
    for chunk in batch.chunks:
        end += chunk.logit_rows
        if chunk.samples:
            rows.append(end - 1 - len(chunk.drafts))
    return (
        logits
        if len(rows) == len(logits)
        else logits[torch.tensor(rows, device=logits.device, dtype=torch.long)]
    )


def accepted(batch: Batch, logits: torch.Tensor, tokens: Seq[int]) -> dict[int, list[int]]:
    """What follows the tokens drawn for sequences whose drafts came true, by sequence id: as the row of each
    right draft predicts.
    """
    if not batch.checking:
        return {}
    drawn = dict(zip((chunk.sequence.id for chunk in batch.sampling), tokens, strict=True))
    row = sum(chunk.logit_rows for chunk in batch.decoding)
    predicted = logits[row : row + sum(chunk.length for chunk in batch.checking)].argmax(dim=-1).tolist()
    found: dict[int, list[int]] = {}
    for chunk in batch.checking:
        token, own = drawn[chunk.sequence.id], predicted[1 : chunk.length]
        del predicted[: chunk.length]
        found[chunk.sequence.id] = []
        for draft, following in zip(chunk.drafts, own, strict=True):
            if draft != token:
                break
            found[chunk.sequence.id].append(token := following)
    return found


def score(batch: Batch, logits: torch.Tensor, tokens: Seq[int]) -> dict[int, Scores]:
    """Log-probabilities by sequence id, for those that ask; tokens[i] was drawn for batch.sampling[i]."""
    drawn = iter(tokens)
    scores: dict[int, Scores] = {}
    row = 0
    for chunk in batch.chunks:
        rows = logits[row : row + chunk.logit_rows]
        row += chunk.logit_rows
        token = [next(drawn)] if chunk.samples else []
        params = chunk.sequence.params
        top = 0 if params.logprobs is None and params.ranked else params.logprobs
        if top is None or len(rows) == 0:
            continue
        # The row of token i predicts token i + 1; the last row predicts the one just drawn.
        known = chunk.sequence.tokens[chunk.start + 1 : chunk.end + 1] if chunk.scored else []
        told = _token_logprobs(rows[: len(known) + len(token)], known + token, top)
        scores[chunk.sequence.id] = Scores(tuple(told[: len(known)]), tuple(told[len(known) :]))
    return scores


def _token_logprobs(logits: torch.Tensor, targets: list[int], top: int) -> list[TokenLogprob]:
    """Logits [rows, vocab] float32, targets [rows] -> one record a row."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(targets, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(top, logits.shape[-1]), dim=-1)
    return [
        TokenLogprob(target, logprob, tuple(zip(row_ids, row_values, strict=True)))
        for target, logprob, row_ids, row_values in zip(
            targets, chosen, ids.tolist(), values.tolist(), strict=True
        )
    ]

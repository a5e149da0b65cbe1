"""What the model thought: log-probabilities from its own logits, before anything changes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice

import torch

from ..outputs import TokenLogprob
from .sequence import Batch
from .transfer import send


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
    return _picked(logits, rows)


def _picked(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """These rows, which are in order and each there once."""
    return logits if len(rows) == len(logits) else logits[send(rows, logits.device)]


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
    asked: dict[int, _Asked] = defaultdict(_Asked)
    row = 0
    for chunk in batch.chunks:
        first, row = row, row + chunk.logit_rows
        token = [next(drawn)] if chunk.samples else []
        params = chunk.sequence.params
        top = 0 if params.logprobs is None and params.ranked else params.logprobs
        if top is None or chunk.logit_rows == 0:
            continue
        # The row of token i predicts token i + 1; the last row predicts the one just drawn.
        known = chunk.sequence.tokens[chunk.start + 1 : chunk.end + 1] if chunk.scored else []
        asked[top].add(chunk.sequence.id, first, known, token)
    scores: dict[int, Scores] = {}
    for top, these in asked.items():
        told = iter(_token_logprobs(logits, these.rows, these.targets, top))
        for sequence_id, known_count, new_count in these.counts:
            prompt, new = tuple(islice(told, known_count)), tuple(islice(told, new_count))
            scores[sequence_id] = Scores(prompt, new)
    return scores


class _Asked:
    """Rows of logits that are asked for with as many of the likeliest tokens beside each: one computation,
    and one answer from the device, for all of them.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.counts: list[tuple[int, int, int]] = []
        """Of each sequence its id, tokens of the prompt and new ones, in the order of the rows."""

    def add(self, sequence_id: int, first: int, known: list[int], new: list[int]) -> None:
        """Rows from `first` on, each of which predicts one of these tokens."""
        targets = known + new
        self.rows += range(first, first + len(targets))
        self.targets += targets
        self.counts.append((sequence_id, len(known), len(new)))


def _token_logprobs(
    logits: torch.Tensor, rows: list[int], targets: list[int], top: int
) -> list[TokenLogprob]:
    """Of these rows of logits [all, vocab], float32, one record each; row i predicts targets[i]."""
    logprobs = torch.log_softmax(_picked(logits, rows), dim=-1)
    chosen = logprobs.gather(-1, send(targets, logits.device)[:, None])
    values, ids = logprobs.topk(min(top, logits.shape[-1]), dim=-1)
    told = torch.cat([chosen, values], dim=-1).tolist()
    return [
        TokenLogprob(target, numbers[0], tuple(zip(row_ids, numbers[1:], strict=True)))
        for target, numbers, row_ids in zip(targets, told, ids.tolist(), strict=True)
    ]

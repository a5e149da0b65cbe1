"""Prompts for models that were trained to fill in the middle (Bavarian et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPELLINGS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),  # Falcon-H1 Coder
    ("<PRE>", "<SUF>", "<MID>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 - DeepSeek Coder's own characters
)
"""How models spell the tokens before prefix, suffix and middle."""

ENDS = (
    "▁<EOT>",
    "<EOT>",
    "<|file_separator|>",
    "<|file_sep|>",
    "<file_sep>",
    "<fim_pad>",
    "<|fim_pad|>",
    "<fim-pad>",
)
"""Tokens that end an infilled text beside EOS: models go on with padding, or with the next file."""


@dataclass(frozen=True, slots=True)
class Infilling:
    """The three tokens of one model, and those that end what it fills in."""

    prefix: int
    suffix: int
    middle: int
    ends: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int]) -> Infilling | None:
        """None for a vocabulary without such tokens."""
        for spelling in SPELLINGS:
            if all(token in vocabulary for token in spelling):
                prefix, suffix, middle = (vocabulary[token] for token in spelling)
                ends = tuple(vocabulary[token] for token in ENDS if token in vocabulary)
                return cls(prefix, suffix, middle, ends)
        return None

    def prompt(self, start: Sequence[int], before: Sequence[int], after: Sequence[int]) -> list[int]:
        """Token ids that ask for the text between `before` and `after`, in the order prefix, suffix, middle,
        behind the tokens that every text of this model starts with.
        """
        return [*start, self.prefix, *before, self.suffix, *after, self.middle]

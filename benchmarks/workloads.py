"""What is asked: prompts of so many tokens, alike at the start or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

from basaran_ops.checkpoint.default_model import default_model
from basaran_ops.checkpoint.resolve import cache_directory
from basaran_ops.settings import Settings


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of request; lengths are in tokens."""

    name: str
    shortest: int
    longest: int
    shared: int = 0
    """How many tokens at the start all prompts have in common."""

    @property
    def context(self) -> int:
        """Tokens of the longest prompt."""
        return self.shared + self.longest


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("short", 16, 400),
        Workload("long", 1000, 4000),
        Workload("shared", 16, 128, shared=1000),
    )
}


class Words:
    """Texts of words that are one token each in this tokenizer: their lengths are exact but for joins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.get_vocab_size())
        words = (tokenizer.decode([number]) for number in ids)
        self._words = [word for word in words if word[:1] == " " and word[1:].isalpha() and word.isascii()]
        if len(self._words) < 1000:
            raise SystemExit("the tokenizer has too few words that begin with a space")

    def text(self, random: Random, tokens: int) -> str:
        """A text of about `tokens` tokens, unlike any other."""
        return "".join(random.choices(self._words, k=tokens)).lstrip()

    def prompts(self, workload: Workload, seed: int) -> Iterator[str]:
        """Prompts without end; another seed gives others, but for the shared start."""
        shared = self.text(Random(0), workload.shared)
        random = Random(f"{workload.name} {seed}")
        while True:
            tokens = random.randint(workload.shortest, workload.longest)
            yield f"{shared} {self.text(random, tokens)}".strip()


def default_words() -> tuple[Path, Words]:
    """The default model's directory, and words of its tokenizer."""
    model = default_model(cache_directory(Settings()), False, print)
    return model, Words(Tokenizer.from_file(str(model / "tokenizer.json")))

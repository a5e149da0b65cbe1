"""A GGUF file's tokenizer as a directory that AutoTokenizer reads."""

from __future__ import annotations

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf import read_gguf_metadata

from ..engine.weights import first_line
from ..errors import ModelLoadError

DIGIT_BY_DIGIT = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
"""Values of tokenizer.ggml.pre whose pre-tokenizer splits every digit off before byte-level BPE
(llama.cpp, llama_vocab::impl::load). transformers 5.23 drops that step when it converts."""


def save_gguf_tokenizer(gguf: Path, directory: Path) -> None:
    """Convert the tokenizer, chat template included. Raises ModelLoadError if transformers cannot."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:
        # A damaged file fails wherever its reader happens to be.
        raise ModelLoadError(f"{gguf}: its tokenizer cannot be converted: {first_line(error)}") from error
    if _pre_tokenizer_name(gguf) in DIGIT_BY_DIGIT:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer.save_pretrained(directory)


def _pre_tokenizer_name(gguf: Path) -> str | None:
    metadata, _ = read_gguf_metadata(str(gguf))
    name = metadata.get("tokenizer.ggml.pre")
    return name if isinstance(name, str) else None

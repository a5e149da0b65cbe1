from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from basaran_ops.errors import ModelLoadError
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import BOS, EOS, tiny_tokenizer


def test_many_threads_may_encode_and_decode_at_once() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    texts = [f"the cat {number} sat on 😀 the mat" * 20 for number in range(64)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda text: tokenizer.decode(tokenizer.encode(text)), texts)) == texts


def test_special_tokens_are_not_text() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    assert tokenizer.decode([BOS, *tokenizer.encode("cat"), EOS]) == "cat"


def test_an_absent_prompt_starts_from_bos_else_eos() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    assert tokenizer.prompt_start() == BOS
    tokenizer.bos_token_id = None
    assert tokenizer.prompt_start() == EOS
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="neither"):
        tokenizer.prompt_start()


def test_a_tokenizer_that_cuts_and_pads_is_stopped_from_doing_so() -> None:
    hf = tiny_tokenizer()
    hf.backend_tokenizer.enable_truncation(4)
    hf.backend_tokenizer.enable_padding(length=50)
    assert len(Tokenizer(hf).encode("x" * 30)) == 30


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="its tokenizer cannot be read"):
        Tokenizer.load(str(tmp_path))

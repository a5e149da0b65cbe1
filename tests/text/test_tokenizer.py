from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import normalizers

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


def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    done = threading.Event()

    def encode() -> None:
        tokenizer.encode("ab cd" * 200_000)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    turns = 0
    while not done.is_set():
        time.sleep(0.005)
        turns += 1
    thread.join()
    assert turns > 10


def test_a_special_token_that_has_no_role_of_its_own_has_a_text() -> None:
    tokenizer = Tokenizer(tiny_tokenizer(("<|im_start|>",)))
    (token,) = tokenizer.encode("<|im_start|>")
    assert tokenizer.token_text(token) == "<|im_start|>"
    assert tokenizer.token_bytes(token) == b"<|im_start|>"


def test_the_bytes_of_tokens_joined_are_the_text_where_their_texts_are_not() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    text = "the 😀 中"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert "".join(tokenizer.token_text(token) for token in ids) != text


def test_a_text_too_long_for_any_tokens_is_seen_without_encoding() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    longest = max(map(len, tokenizer.hf.get_vocab()))
    assert tokenizer.at_least_tokens(10 * longest) == 10
    tokenizer._backend.normalizer = normalizers.Strip()
    assert tokenizer.at_least_tokens(10**9) == 0, "it may shorten texts"


WHILE_ANOTHER_IMPORTS = """
import sys, threading, time
from basaran_ops.text.tokenizer import Tokenizer, import_library

other = threading.Thread(target=import_library)
other.start()
while "transformers" not in sys.modules:
    time.sleep(0.0001)
tokenizer = Tokenizer.load(sys.argv[1])
other.join()
print(tokenizer.decode(tokenizer.encode("cat")))
"""


def test_it_is_loaded_while_another_thread_imports_the_library(tiny_path: Path) -> None:
    command = [sys.executable, "-c", WHILE_ANOTHER_IMPORTS, str(tiny_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout == "cat\n", done.stderr

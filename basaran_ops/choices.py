"""What a call of the library yields: pieces of choices, as Basaran's dicts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import NotRequired, Self, TypedDict, cast

from .errors import NotReady, StreamClosed
from .outputs import FinishReason
from .server.logprobs import completion_logprobs, token_ids
from .text.tokenizer import Tokenizer
from .text_stream import TextOutput, TextStream, Usage, best, collect


class Logprobs(TypedDict):
    """What the model thought of each token of a piece of text, one entry a token."""

    tokens: list[str]
    """Their texts; joined they are the piece's."""
    token_logprobs: list[float | None]
    """Natural logarithms of the model's own probabilities; None for a prompt's first token."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens at each place by text, the one that stands there first."""
    text_offset: list[int]
    """Characters before each: of prompt and completion, in a conversation of the answer alone."""


class ChoiceDict(TypedDict):
    """The next piece of one choice, as Basaran's. The piece with a finish_reason is the choice's last."""

    text: str
    index: int
    """Choice j of prompt i has index i * n + j."""
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    """"stop" for a token or a string that ends the text, "length" for max_tokens; None until then."""
    token_ids: NotRequired[list[int]]
    """With `return_token_ids`: the generated tokens of this piece."""


class Forgotten:
    """Streams whose reader has let go of them, on their way to being closed.

    The garbage collector may find one while its thread holds the pool's lock, which closing takes. All that
    it may do is put, which is reentrant; the engine's next step, on the replica's thread, closes.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[TextStream, Iterator[TextOutput]]] = SimpleQueue()

    def watch(self, owner: object, stream: TextStream, outputs: Iterator[TextOutput]) -> None:
        """Close a stream once `owner` is gone. Its iterator is held too: collected, it would close itself."""
        weakref.finalize(owner, self._queue.put, (stream, outputs)).atexit = False

    def close_all(self) -> None:
        """Close those that are here by now."""
        while True:
            try:
                stream, _ = self._queue.get_nowait()
            except Empty:
                return
            stream.close(client_gone=True)


def forked() -> NotReady:
    """The error of whoever asks a model of another process."""
    return NotReady("the model runs in the process that loaded it, not in its forks", code="forked")


class ChoiceStream(Iterator[ChoiceDict]):
    """The pieces of one call's choices, as they come. One thread iterates; anyone may close.

    Its generation ends, and its slots are free within two steps, when it is closed, when reading it raises,
    or when it is forgotten, iterated or not.
    """

    def __init__(
        self,
        owner: object,
        stream: TextStream,
        outputs: Iterator[TextOutput],
        make: Callable[[TextOutput], ChoiceDict],
        forgotten: Forgotten,
    ) -> None:
        """`owner` is kept as long as this is."""
        self._owner = owner
        self._stream = stream
        self._outputs = outputs
        self._make = make
        self._closed = False
        self._process = os.getpid()
        forgotten.watch(self, stream, outputs)

    def __next__(self) -> ChoiceDict:
        """The next piece. Raises EngineFailed if the engine did, ModelClosed if the model was closed, and
        NotReady in a fork of the process that asked.
        """
        if os.getpid() != self._process:
            raise forked()
        if self._closed:
            # Though more may have come.
            raise StopIteration
        try:
            return self._make(next(self._outputs))
        except StreamClosed:
            if self._closed:
                raise StopIteration from None
            raise

    def close(self) -> None:
        """End the generation; iterating ends too. Idempotent, never blocks, from any thread."""
        self._closed = True
        self._stream.close(client_gone=True)

    @property
    def usage(self) -> Usage:
        """Tokens of the prompts, and of the completions so far."""
        return self._stream.usage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def outputs_of(stream: TextStream, n: int, sequences: int) -> Iterator[TextOutput]:
    """What a stream brings, as it comes; where the best n of more `sequences` are wanted, at its end."""
    if sequences == n:
        for outputs in stream.outputs():
            yield from outputs
        return
    for index, choice in enumerate(best(collect(stream), n, sequences)):
        yield TextOutput(index, choice.text, choice.finish_reason, tuple(choice.tokens))


def make_choice(
    tokenizer: Tokenizer, output: TextOutput, *, scored: bool, ids: bool, origin: int = 0
) -> ChoiceDict:
    """The dict of an output; text offsets count from `origin`."""
    logprobs = None
    if scored:
        logprobs = cast("Logprobs", completion_logprobs(output.tokens, tokenizer))
        logprobs["text_offset"] = [offset - origin for offset in logprobs["text_offset"]]
    choice = ChoiceDict(
        text=output.text, index=output.index, logprobs=logprobs, finish_reason=output.finish_reason
    )
    if ids:
        choice["token_ids"] = token_ids(output.tokens, told=True)["token_ids"]
    return choice


def reduce_choice(pieces: Iterable[ChoiceDict]) -> ChoiceDict:
    """All pieces of one choice as a single one, as Basaran's function of this name.

    >>> reduce_choice(model("one two", echo=True, max_tokens=0))
    {'text': 'one two', 'index': 0, 'logprobs': None, 'finish_reason': 'length'}
    """
    texts: list[str] = []
    whole = ChoiceDict(text="", index=0, logprobs=None, finish_reason=None)
    for piece in pieces:
        texts.append(piece["text"])
        whole["index"], whole["finish_reason"] = piece["index"], piece["finish_reason"]
        if "token_ids" in piece:
            whole.setdefault("token_ids", []).extend(piece["token_ids"])
        if (more := piece["logprobs"]) is not None:
            told = whole["logprobs"]
            if told is None:
                told = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
                whole["logprobs"] = told
            told["tokens"] += more["tokens"]
            told["token_logprobs"] += more["token_logprobs"]
            told["top_logprobs"] += more["top_logprobs"]
            told["text_offset"] += more["text_offset"]
    whole["text"] = "".join(texts)
    return whole

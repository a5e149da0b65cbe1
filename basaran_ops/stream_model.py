"""From prompts to text: what the library's user and the server both call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .errors import ContextLengthExceeded, InvalidRequest, NotReady
from .outputs import FinishReason, ModelInfo
from .pool import GenerationPool, SequenceWork, StreamOutput, TokenStream
from .sampling_params import SamplingParams
from .text.detokenizer import Detokenizer
from .text.stop_checker import StopChecker
from .text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | None
"""Text, token ids, or None for the model's own beginning."""


@dataclass(frozen=True, slots=True)
class TextOutput:
    """New text of one choice. The output with a finish_reason is the choice's last."""

    index: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    info: ModelInfo
    tokenizer: Tokenizer


class StreamModel:
    """A model, its tokenizer and the pool that runs it. Many threads may call it at once."""

    def __init__(self, *, trust_remote_code: bool = False) -> None:
        self._trust_remote_code = trust_remote_code
        self._pool: GenerationPool | None = None
        self._loaded: _Loaded | None = None

    def attach(self, pool: GenerationPool) -> None:
        """Draw from this pool. It must have been made with our `on_ready`."""
        self._pool = pool

    def on_ready(self, info: ModelInfo) -> None:
        """Read the tokenizer of a model that a replica has loaded. Raises ModelLoadError."""
        if self._loaded is None:
            tokenizer = Tokenizer.load(info.tokenizer_path, trust_remote_code=self._trust_remote_code)
            self._loaded = _Loaded(info, tokenizer)

    @property
    def pool(self) -> GenerationPool:
        assert self._pool is not None, "attach() a pool first"
        return self._pool

    @property
    def info(self) -> ModelInfo | None:
        """What is known of the model; None until it is loaded."""
        return None if self._loaded is None else self._loaded.info

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> TextStream:
        """Start generating `params.n` choices for each prompt; choice j of prompt i has index i * n + j.

        Raises InvalidRequest, ContextLengthExceeded, Overloaded or NotReady before anything is generated.
        """
        if self._loaded is None:
            self.pool.check_ready()
            raise NotReady("the model is loading", code="model_loading")
        encoded = [_encode(self._loaded, prompt, params) for prompt in prompts]
        work = [
            SequenceWork(ids, params, params.seed_of(choice)) for ids in encoded for choice in range(params.n)
        ]
        return TextStream(self.pool, self._loaded, work, sum(len(ids) for ids in encoded))

    def close(self) -> None:
        """End all requests and the engines."""
        self.pool.close()


@dataclass(slots=True)
class _Choice:
    """The text side of one sequence; touched by the request's own thread alone."""

    detokenizer: Detokenizer
    stop: StopChecker
    done: bool = False


@dataclass(slots=True)
class Usage:
    """Tokens of one request so far."""

    prompt_tokens: int
    completion_tokens: int = field(default=0)


class TextStream:
    """The text of one request as it comes. Iterated by one thread; closed by anyone."""

    def __init__(
        self, pool: GenerationPool, loaded: _Loaded, work: list[SequenceWork], prompt_tokens: int
    ) -> None:
        self.usage = Usage(prompt_tokens)
        self._pool = pool
        self._eos = loaded.info.eos_token_ids
        decode = loaded.tokenizer.decode
        self._choices = [
            _Choice(Detokenizer(decode, item.prompt_ids), StopChecker(item.params.stop)) for item in work
        ]
        # Nothing to generate needs no engine: max_tokens is the same for all.
        self._empty = work[0].params.max_tokens == 0
        self._stream: TokenStream = pool.submit([] if self._empty else work)

    def outputs(self, idle: float | None = None) -> Iterator[list[TextOutput]]:
        """Yield what is new, several choices at once where they came together.

        Yields [] when nothing came for `idle` seconds. Raises the error that ended the request, or
        StreamClosed. Closes itself at the end.
        """
        try:
            if self._empty:
                yield [TextOutput(index, "", "length") for index in range(len(self._choices))]
                return
            while True:
                taken = self._stream.take(idle)
                if taken is None:
                    yield []
                    continue
                if not taken:
                    return
                texts = [text for output in taken if (text := self._decode(output)) is not None]
                if texts:
                    yield texts
        finally:
            self.close()

    def close(self) -> None:
        """End the request. Idempotent, from any thread."""
        self._pool.release(self._stream)

    def _decode(self, event: StreamOutput) -> TextOutput | None:
        """The text of one output; None if there is nothing to show yet."""
        choice = self._choices[event.index]
        if choice.done:
            return None
        text = ""
        for token in event.output.token_ids:
            self.usage.completion_tokens += 1
            if token not in self._eos:
                text += choice.stop.push(choice.detokenizer.push(token))
        reason = event.output.finish_reason
        if reason is not None and choice.stop.matched is None:
            text += choice.stop.push(choice.detokenizer.flush())
            if choice.stop.matched is None:
                text += choice.stop.flush()
        if choice.stop.matched is not None:
            if reason is None:
                self._stream.cancel(event.index)
            reason = "stop"
        choice.done = reason is not None
        return TextOutput(event.index, text, reason) if text or reason is not None else None


def _encode(loaded: _Loaded, prompt: Prompt, params: SamplingParams) -> tuple[int, ...]:
    """Token ids of one prompt, checked against vocabulary and context."""
    info, tokenizer = loaded.info, loaded.tokenizer
    ids = tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else tuple(prompt or ())
    for token in ids:
        if not 0 <= token < info.vocab_size:
            raise InvalidRequest(
                f"prompt: token id {token} is outside the vocabulary of {info.vocab_size}", param="prompt"
            )
    if not ids:
        try:
            ids = (tokenizer.prompt_start(),)
        except ValueError as error:
            raise InvalidRequest(f"prompt must not be empty: {error}", param="prompt") from None
    limit = info.context_length
    if len(ids) >= limit and (params.max_tokens or len(ids) > limit):
        raise ContextLengthExceeded(
            limit, f"your prompt has {len(ids)} tokens. Please shorten it.", param="prompt"
        )
    if len(ids) + params.max_tokens > limit:
        raise ContextLengthExceeded(
            limit,
            f"you requested {len(ids) + params.max_tokens} tokens ({len(ids)} in the prompt, "
            f"{params.max_tokens} in the completion). Please shorten the prompt or lower max_tokens.",
            param="max_tokens",
        )
    return ids

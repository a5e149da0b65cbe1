"""From prompts to text: what the library's user and the server both call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from .errors import ContextLengthExceeded, InvalidRequest, NotReady
from .outputs import FinishReason, ModelInfo, TokenLogprob
from .pool import GenerationPool, SequenceWork, StreamOutput, TokenStream
from .sampling_params import SamplingParams
from .text.chat_template import ChatTemplate
from .text.detokenizer import Detokenizer
from .text.stop_checker import StopChecker
from .text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | None
"""Text, token ids, or None for the model's own beginning."""


@dataclass(frozen=True, slots=True)
class TextToken:
    """One token's share of a text, and what the model thought of it."""

    text: str
    """What it added; "" for a token that ends the text or only begins a character."""
    offset: int
    """Characters of prompt and completion before it."""
    token_id: int
    logprob: float | None
    """None for a prompt's first token, which nothing predicts."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place, by id, the likeliest first."""
    generated: bool = True
    """False for a token of an echoed prompt."""

    @property
    def end(self) -> int:
        return self.offset + len(self.text)


@dataclass(frozen=True, slots=True)
class TextOutput:
    """New text of one choice. The output with a finish_reason is the choice's last."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    tokens: tuple[TextToken, ...] = ()
    """Where log-probabilities were asked for: the tokens of `text`, whose texts joined are it."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    info: ModelInfo
    tokenizer: Tokenizer
    chat_template: ChatTemplate


class StreamModel:
    """A model, its tokenizer and the pool that runs it. Many threads may call it at once."""

    def __init__(self, *, trust_remote_code: bool = False, chat_template: str | None = None) -> None:
        """`chat_template` is the operator's, which goes before the tokenizer's own."""
        self._trust_remote_code = trust_remote_code
        self._own_template = chat_template
        self._pool: GenerationPool | None = None
        self._loaded: _Loaded | None = None

    def attach(self, pool: GenerationPool) -> None:
        """Draw from this pool. It must have been made with our `on_ready`."""
        self._pool = pool

    def on_ready(self, info: ModelInfo) -> None:
        """Read the tokenizer of a model that a replica has loaded. Raises ModelLoadError.

        Replicas may differ in how long a context fits into their memory: the shortest counts for all.
        """
        if self._loaded is None:
            tokenizer = Tokenizer.load(info.tokenizer_path, trust_remote_code=self._trust_remote_code)
            self._loaded = _Loaded(info, tokenizer, ChatTemplate(tokenizer, self._own_template))
        elif info.context_length < self._loaded.info.context_length:
            self._loaded = replace(self._loaded, info=info)

    @property
    def pool(self) -> GenerationPool:
        assert self._pool is not None, "attach() a pool first"
        return self._pool

    @property
    def info(self) -> ModelInfo | None:
        """What is known of the model; None until it is loaded."""
        return None if self._loaded is None else self._loaded.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises NotReady until the model is loaded."""
        return self._ready().tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises NotReady until the model is loaded."""
        return self._ready().chat_template

    def check_token_ids(self, name: str, ids: Iterable[int]) -> None:
        """Raise InvalidRequest, with `name` as its param, for an id outside the vocabulary."""
        size = self._ready().info.vocab_size
        for token in ids:
            if not 0 <= token < size:
                raise InvalidRequest(
                    f"{name}: token id {token} is outside the vocabulary of {size}", param=name
                )

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        suffix: str = "",
        echo: bool = False,
        fit: bool = False,
    ) -> TextStream:
        """Start generating `params.n` choices for each prompt; choice j of prompt i has index i * n + j.

        With `suffix` the text between prompt and suffix is generated; with `echo` each choice's text begins
        with its prompt; with `fit` max_tokens shrinks to what the prompt leaves of the context. Raises
        InvalidRequest, ContextLengthExceeded, Overloaded or NotReady
        before anything is generated.
        """
        loaded = self._ready()
        self.check_token_ids("logit_bias", (token for token, _ in params.logit_bias))
        self.check_token_ids("stop_token_ids", params.stop_token_ids)
        separate = loaded.info.completion_length is not None
        scored = echo and params.logprobs is not None and loaded.info.scores_prompts
        params = replace(params, prompt_logprobs=scored)
        if suffix and loaded.tokenizer.infilling is not None:
            ends = () if params.ignore_eos else loaded.tokenizer.infilling.ends
            params = replace(params, stop_token_ids=params.stop_token_ids + ends)
        choices, prompt_tokens = [], 0
        for prompt in prompts:
            if not isinstance(prompt, str):
                self.check_token_ids("prompt", prompt or ())
            ids = _encode(loaded.tokenizer, prompt, suffix)
            own = _fitted(loaded.info, ids, params, fit=fit)
            prompt_tokens += len(ids)
            text = prompt if isinstance(prompt, str) else loaded.tokenizer.decode(prompt or ())
            choices += [
                _Choice(
                    SequenceWork(ids, own, own.seed_of(number)),
                    loaded.tokenizer,
                    text,
                    echo=echo,
                    separate=separate,
                )
                for number in range(params.n)
            ]
        return TextStream(self.pool, choices, prompt_tokens)

    def close(self) -> None:
        """End all requests and the engines."""
        self.pool.close()

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            self.pool.check_ready()
            raise NotReady("the model is loading", code="model_loading")
        return self._loaded


@dataclass(slots=True)
class Usage:
    """Tokens of one request so far."""

    prompt_tokens: int
    cached_tokens: int = field(default=0)
    """Prompt tokens that an earlier sequence had computed; a prompt counts once, by its first choice."""
    completion_tokens: int = field(default=0)


class TextStream:
    """The text of one request as it comes. Iterated by one thread; closed by anyone."""

    def __init__(self, pool: GenerationPool, choices: list[_Choice], prompt_tokens: int) -> None:
        self.usage = Usage(prompt_tokens)
        self._pool = pool
        self._choices = choices
        # Nothing to generate and nothing to score needs no engine; all choices are alike in that.
        params = choices[0].work.params
        self._idle = params.max_tokens == 0 and not params.prompt_logprobs
        self._stream: TokenStream = pool.submit([] if self._idle else [choice.work for choice in choices])

    def outputs(self, idle: float | None = None) -> Iterator[list[TextOutput]]:
        """Yield what is new, several choices at once where they came together.

        Yields [] when nothing came for `idle` seconds. Raises the error that ended the request, or
        StreamClosed. Closes itself at the end.
        """
        try:
            if self._idle:
                yield [TextOutput(i, choice.echoed(), "length") for i, choice in enumerate(self._choices)]
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
        if choice.has_ended():
            return None
        output = event.output
        self.usage.completion_tokens += len(output.token_ids)
        if event.index % choice.work.params.n == 0:
            self.usage.cached_tokens += output.cached_tokens
        choice.score_prompt(output.prompt_logprobs)
        ended_by_token = output.finish_reason == "stop"
        for position, token in enumerate(output.token_ids):
            last = ended_by_token and position == len(output.token_ids) - 1
            choice.push(token, output.logprobs[position] if output.logprobs else None, silent=last)
        if output.finish_reason is not None:
            choice.finish(output.finish_reason)
        elif choice.has_ended():
            # A stop string matched: the engine does not know of those.
            self._stream.cancel(event.index)
        text, tokens = choice.take()
        if not text and not choice.has_ended():
            return None
        return TextOutput(event.index, text, choice.finish_reason, tokens)


class _Choice:
    """The text side of one sequence; touched by the request's own thread alone."""

    def __init__(
        self, work: SequenceWork, tokenizer: Tokenizer, prompt_text: str, *, echo: bool, separate: bool
    ) -> None:
        """`separate`: the completion does not go on where the prompt ends, but is a text of its own."""
        self.work = work
        self.finish_reason: FinishReason | None = None
        self._scored = work.params.logprobs is not None
        self._prompt_text = prompt_text
        self._echo = echo
        # An echoed prompt with log-probabilities is decoded token by token, and what follows along with it.
        told = echo and self._scored
        self._detokenizer = Detokenizer(tokenizer.decode, [] if told or separate else work.prompt_ids)
        self._stop = StopChecker(work.params.stop)
        self._num_tokens = 0
        self._ready = prompt_text if echo and not told else ""
        """Text that can be shown."""
        self._pending: list[TextToken] = []
        """Tokens whose text cannot all be shown yet."""
        self._offset = 0 if told else len(prompt_text)
        """Characters up to the end of the last token."""
        self._shown = self._offset
        """Characters up to the end of what was taken."""
        if told:
            # The first token of a prompt has no score; where the prompt is not scored, none has.
            for token in work.prompt_ids[: 1 if work.params.prompt_logprobs else None]:
                self._add_prompt_token(token, None)
        if told and separate:
            rest = self._detokenizer.flush()
            self._extend_last(rest)
            self._ready += rest
            self._detokenizer = Detokenizer(tokenizer.decode, [])

    def has_ended(self) -> bool:
        return self.finish_reason is not None

    def echoed(self) -> str:
        """The text of a choice for which nothing is generated."""
        return self._prompt_text if self._echo else ""

    def score_prompt(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Take the next prompt tokens' log-probabilities; stop strings do not match in a prompt."""
        for logprob in logprobs:
            self._add_prompt_token(logprob.token_id, logprob)

    def push(self, token: int, logprob: TokenLogprob | None, *, silent: bool) -> None:
        """Take a generated token; a silent one ends the text and has none itself."""
        if self.finish_reason is not None:
            return
        self._num_tokens += 1
        if silent:
            self._flush()
        text = "" if silent else self._detokenizer.push(token)
        if logprob is not None:
            self._add(TextToken(text, self._offset, token, logprob.logprob, logprob.top))
        self._show(text)

    def finish(self, reason: FinishReason) -> None:
        """The sequence has ended: let go of all that is held back, unless a stop string matches in it."""
        if self.finish_reason is not None:
            return
        self._flush()
        if self.finish_reason is None:
            self._ready += self._stop.flush()
            self.finish_reason = reason

    def take(self) -> tuple[str, tuple[TextToken, ...]]:
        """What can be shown since the last time: text, and the tokens that end in it, never those alone."""
        if not self._ready and not self.has_ended():
            return "", ()
        text, self._ready = self._ready, ""
        self._shown += len(text)
        # While a character is unfinished, its text may still be added to the last token.
        kept = int(self.finish_reason is None and self._detokenizer.holding)
        tokens = []
        while len(self._pending) > kept and self._pending[0].end <= self._shown:
            tokens.append(self._pending.pop(0))
        if self.finish_reason is not None and self._pending and self._pending[0].offset < self._shown:
            # A stop string cut this one's text.
            cut = self._pending[0]
            tokens.append(replace(cut, text=cut.text[: self._shown - cut.offset]))
        return text, tuple(tokens)

    def _flush(self) -> None:
        """No more tokens with text will come: an unfinished character is one to the last that came."""
        rest = self._detokenizer.flush()
        self._extend_last(rest)
        self._show(rest)

    def _show(self, text: str) -> None:
        if self._num_tokens < self.work.params.min_tokens:
            self._ready += text
            return
        self._ready += self._stop.push(text)
        if self._stop.matched is not None:
            self.finish_reason = "stop"

    def _add_prompt_token(self, token: int, logprob: TokenLogprob | None) -> None:
        text = self._detokenizer.push(token)
        scored = TextToken(text, self._offset, token, None, generated=False)
        if logprob is not None:
            scored = replace(scored, logprob=logprob.logprob, top=logprob.top)
        self._add(scored)
        self._ready += text

    def _extend_last(self, text: str) -> None:
        """An unfinished character is one to the last token that came."""
        if text and self._pending:
            last = self._pending[-1]
            self._pending[-1] = replace(last, text=last.text + text)
            self._offset += len(text)

    def _add(self, token: TextToken) -> None:
        self._pending.append(token)
        self._offset = token.end


def _encode(tokenizer: Tokenizer, prompt: Prompt, suffix: str) -> tuple[int, ...]:
    """Token ids of one prompt, never none."""
    if suffix:
        try:
            return tuple(tokenizer.encode_infilling("" if prompt is None else prompt, suffix))
        except ValueError as error:
            raise InvalidRequest(str(error), param="suffix", code="unsupported_parameter") from None
    ids = tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else tuple(prompt or ())
    if ids:
        return ids
    try:
        return (tokenizer.prompt_start(),)
    except ValueError as error:
        raise InvalidRequest(f"prompt must not be empty: {error}", param="prompt") from None


def _fitted(info: ModelInfo, ids: Sequence[int], params: SamplingParams, *, fit: bool) -> SamplingParams:
    """The parameters of a prompt that fits the context. Raises ContextLengthExceeded if it does not."""
    limit, room = info.context_length, info.room_after(len(ids))
    if room < min(1, params.max_tokens):
        raise ContextLengthExceeded(
            limit, f"your prompt has {len(ids)} tokens. Please shorten it.", param="prompt"
        )
    if params.max_tokens <= room:
        return params
    if fit:
        return replace(params, max_tokens=room)
    if info.completion_length is not None:
        raise ContextLengthExceeded(
            room, f"you requested {params.max_tokens} tokens in the completion.", param="max_tokens"
        )
    raise ContextLengthExceeded(
        limit,
        f"you requested {len(ids) + params.max_tokens} tokens ({len(ids)} in the prompt, "
        f"{params.max_tokens} in the completion). Please shorten the prompt or lower max_tokens.",
        param="max_tokens",
    )

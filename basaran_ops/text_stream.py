"""The text of one request, as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from .outputs import FinishReason, TokenLogprob
from .pool import GenerationPool, SequenceWork, StreamOutput, TokenStream
from .text.detokenizer import Detokenizer
from .text.stop_checker import StopChecker
from .text.tokenizer import Tokenizer


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


@dataclass(slots=True)
class Usage:
    """Tokens of one request so far."""

    prompt_tokens: int
    cached_tokens: int = field(default=0)
    """Prompt tokens that an earlier sequence had computed; a prompt counts once, by its first choice."""
    completion_tokens: int = field(default=0)


class TextStream:
    """The text of one request as it comes. Iterated by one thread; closed by anyone."""

    def __init__(self, pool: GenerationPool, choices: list[Choice], prompt_tokens: int) -> None:
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


class Choice:
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

"""The text of one request, as it comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from .errors import DeadlineExceeded, StreamClosed
from .outputs import FinishReason, SequenceOutput, TokenLogprob
from .pool import GenerationPool, SequenceWork, StreamOutput, TokenStream
from .records import ChoiceRecord, Listeners, Outcome, RequestContext, RequestListener, RequestRecord
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
    """Where log-probabilities or ids were asked for: the tokens of `text`, whose texts joined are it."""
    mean_logprob: float = 0.0
    """With the finish_reason, where choices are ranked: of all that was generated, told or not."""


@dataclass(slots=True)
class Usage:
    """Tokens of one request so far."""

    prompt_tokens: int
    cached_tokens: int = field(default=0)
    """Prompt tokens that an earlier sequence had computed; a prompt counts once, by its first choice."""
    completion_tokens: int = field(default=0)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a request may take; None for as long as it likes."""

    queue: float | None = None
    """Until its first token."""
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told of a request, and how long it may take."""

    context: RequestContext = field(default_factory=RequestContext)
    listener: RequestListener = field(default_factory=Listeners)
    limits: TimeLimits = TimeLimits()
    keep_text: bool = False
    """Whether the record of its end holds its text."""


class TextStream:
    """The text of one request as it comes. Iterated by one thread; closed by anyone.

    `_record_lock` guards `_recorded`, `usage` and what is counted of choices: whoever takes `_recorded` from
    False to True tells of the end, and nothing is counted after that.
    """

    def __init__(
        self, pool: GenerationPool, choices: list[Choice], prompt_tokens: int, watch: Watch | None = None
    ) -> None:
        self.usage = Usage(prompt_tokens)
        self.prompt_ids = tuple(choice.work.prompt_ids for choice in choices[:: choices[0].work.params.n])
        """The token ids of each prompt."""
        self._pool = pool
        self._choices = choices
        self._watch = watch or Watch()
        self._arrived_at = time.monotonic()
        # Reentrant: a signal handler may close what its own thread is reading.
        self._record_lock = threading.RLock()
        self._recorded = False
        self._error: Exception | None = None
        # Nothing to generate and nothing to score needs no engine; all choices are alike in that.
        params = choices[0].work.params
        self._idle = params.max_tokens == 0 and not params.prompt_logprobs
        self._stream: TokenStream = pool.submit([] if self._idle else [choice.work for choice in choices])

    def outputs(self, idle: float | None = None) -> Iterator[list[TextOutput]]:
        """Yield what is new, several choices at once where they came together.

        Yields [] when there was nothing to show for `idle` seconds. Raises the error that ended the request,
        DeadlineExceeded at the end of its time, or StreamClosed. Closes itself at the end.
        """
        try:
            if self._idle:
                self._watch.listener.prompt_read(self._watch.context, self.usage.prompt_tokens, 0)
                yield [self._echo(index, choice) for index, choice in enumerate(self._choices)]
                return
            told_at = time.monotonic()
            while True:
                quiet = time.monotonic() - told_at
                taken = self._stream.take(self._patience(None if idle is None else idle - quiet))
                self._check_time()
                if taken == []:
                    return
                texts = [text for output in taken or () if (text := self._decode(output)) is not None]
                # Tokens may come and have no text, for as long as a proxy would wait.
                if texts or (idle is not None and time.monotonic() - told_at >= idle):
                    yield texts
                    told_at = time.monotonic()
        except GeneratorExit:
            self.close(client_gone=True)
            raise
        except Exception as error:
            self._error = error
            raise
        finally:
            self.close()

    def close(self, *, client_gone: bool = False) -> None:
        """End the request. Idempotent, from any thread."""
        with self._record_lock:
            first, self._recorded = not self._recorded, True
            record = self._record(client_gone) if first else None
        self._pool.release(self._stream)
        if record is not None:
            self._watch.listener.request_ended(record)

    def _echo(self, index: int, choice: Choice) -> TextOutput:
        choice.finish_reason = "length"
        return TextOutput(index, choice.echoed(), "length", choice.take()[1])

    def _patience(self, idle: float | None) -> float | None:
        """Seconds to wait for an output."""
        left = [seconds for seconds in (idle, *self._time_left()) if seconds is not None]
        return max(0.0, min(left)) if left else None

    def _time_left(self) -> tuple[float | None, float | None]:
        """Seconds until the queue's limit, while that counts, and until the request's own."""
        passed = time.monotonic() - self._arrived_at
        limits = self._watch.limits
        queued = not any(choice.begun for choice in self._choices)
        return (
            limits.queue - passed if queued and limits.queue is not None else None,
            limits.total - passed if limits.total is not None else None,
        )

    def _check_time(self) -> None:
        queue, total = self._time_left()
        if total is not None and total <= 0:
            limit = self._watch.limits.total
            raise DeadlineExceeded(f"the request took longer than {limit:g} s", code="request_timeout")
        if queue is not None and queue <= 0:
            limit = self._watch.limits.queue
            raise DeadlineExceeded(f"no slot was free for {limit:g} s", code="queue_timeout")

    def _record(self, client_gone: bool) -> RequestRecord:
        watch, error = self._watch, self._error
        return RequestRecord(
            context=watch.context,
            outcome=self._outcome(),
            arrived_at=self._arrived_at,
            ended_at=time.monotonic(),
            prompt_tokens=self.usage.prompt_tokens,
            cached_tokens=self.usage.cached_tokens,
            completion_tokens=self.usage.completion_tokens,
            max_tokens=self._choices[0].work.params.max_tokens,
            choices=tuple(choice.record() for choice in self._choices),
            status=self._status(client_gone),
            error=None if error is None or isinstance(error, StreamClosed) else str(error),
            client_gone=client_gone,
            prompts=tuple(choice.prompt_text for choice in self._choices) if watch.keep_text else (),
            texts=tuple("".join(choice.shown) for choice in self._choices) if watch.keep_text else (),
        )

    def _status(self, client_gone: bool) -> int:
        if self._watch.context.streamed:
            return 200
        if client_gone:
            return StreamClosed.status
        return 200 if self._error is None else getattr(self._error, "status", 500)

    def _outcome(self) -> Outcome:
        if isinstance(self._error, DeadlineExceeded):
            return "timeout"
        if self._error is not None and not isinstance(self._error, StreamClosed):
            return "error"
        reasons = {choice.finish_reason for choice in self._choices}
        if not reasons <= {"stop", "length"}:
            return "abort"
        return "length" if "length" in reasons else "stop"

    def _decode(self, event: StreamOutput) -> TextOutput | None:
        """The text of one output; None if there is nothing to show yet."""
        choice = self._choices[event.index]
        if choice.has_ended():
            return None
        output = event.output
        self._tell(choice, output, counts_prompt=event.index % choice.work.params.n == 0)
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
        return TextOutput(event.index, text, choice.finish_reason, tokens, choice.mean_logprob)

    def _tell(self, choice: Choice, output: SequenceOutput, *, counts_prompt: bool) -> None:
        """Count, and tell the listener, what an output brought. A prompt counts once, whatever n is."""
        watch, now = self._watch, time.monotonic()
        with self._record_lock:
            if self._recorded:
                # Its end was told, with what had come by then.
                return
            if counts_prompt and not choice.begun and output.finish_reason not in ("abort", "error"):
                self.usage.cached_tokens += output.cached_tokens
                length = len(choice.work.prompt_ids)
                watch.listener.prompt_read(watch.context, length, output.cached_tokens)
            before = choice.last_token_at
            choice.count(output, now)
            if output.token_ids:
                self.usage.completion_tokens += len(output.token_ids)
                gap = None if before is None else now - before
                watch.listener.tokens_generated(watch.context, len(output.token_ids), gap)


class Choice:
    """The text side of one sequence; touched by the request's own thread alone."""

    def __init__(
        self,
        work: SequenceWork,
        tokenizer: Tokenizer,
        prompt_text: str,
        *,
        echo: bool,
        separate: bool,
        token_ids: bool = False,
    ) -> None:
        """`separate`: the completion does not go on where the prompt ends, but is a text of its own.
        `token_ids`: tell generated tokens also where they are not scored.
        """
        self.work = work
        self.finish_reason: FinishReason | None = None
        self.prompt_text = prompt_text
        self.shown: list[str] = []
        """The pieces of its text."""
        self.begun = False
        """Whether it has had an output."""
        self.last_token_at: float | None = None
        self._first_token_at: float | None = None
        self._scheduled_at: float | None = None
        self._generated = 0
        self._scored = work.params.logprobs is not None
        self._told = self._scored or token_ids
        self._echo = echo
        # An echoed prompt with log-probabilities is decoded token by token, and what follows along with it.
        told = echo and self._scored
        self._detokenizer = Detokenizer(tokenizer.decode, [] if told or separate else work.prompt_ids)
        self._stop = StopChecker(work.params.stop)
        self._num_tokens = 0
        self._logprobs = 0.0
        """The sum over generated tokens, where they are scored."""
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

    def count(self, output: SequenceOutput, now: float) -> None:
        """Take note of when an output came and of how many tokens it has."""
        if output.scheduled_at is not None:
            self._scheduled_at = output.scheduled_at
        self.begun = True
        if output.token_ids:
            self._generated += len(output.token_ids)
            self._first_token_at = now if self._first_token_at is None else self._first_token_at
            self.last_token_at = now

    def record(self) -> ChoiceRecord:
        """What is known of it by now."""
        return ChoiceRecord(
            self._generated, self.finish_reason, self._scheduled_at, self._first_token_at, self.last_token_at
        )

    def has_ended(self) -> bool:
        return self.finish_reason is not None

    @property
    def mean_logprob(self) -> float:
        """Of all generated tokens, those of a stop string included."""
        return self._logprobs / max(1, self._num_tokens)

    def echoed(self) -> str:
        """The text of a choice for which nothing is generated."""
        return self.prompt_text if self._echo else ""

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
            self._logprobs += logprob.logprob
        if self._told:
            known = logprob if self._scored else None
            score, top = (None, ()) if known is None else (known.logprob, known.top)
            self._add(TextToken(text, self._offset, token, score, top))
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
        self.shown.append(text)
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


@dataclass(slots=True)
class WholeChoice:
    """All of one choice's text."""

    index: int
    texts: list[str] = field(default_factory=list)
    tokens: list[TextToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    mean_logprob: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.texts)


def collect(stream: TextStream) -> list[WholeChoice]:
    """Read a stream to its end; the choices by index."""
    choices: dict[int, WholeChoice] = {}
    for outputs in stream.outputs():
        for output in outputs:
            choice = choices.setdefault(output.index, WholeChoice(output.index))
            choice.texts.append(output.text)
            choice.tokens += output.tokens
            choice.finish_reason = output.finish_reason
            choice.mean_logprob = output.mean_logprob
    return [choices[index] for index in sorted(choices)]


def best(choices: list[WholeChoice], n: int, best_of: int) -> list[WholeChoice]:
    """Of each prompt's best_of choices the n whose generated tokens are likeliest on average."""
    if n == best_of:
        return choices
    likeliest: list[WholeChoice] = []
    for start in range(0, len(choices), best_of):
        group = choices[start : start + best_of]
        likeliest += sorted(group, key=lambda choice: choice.mean_logprob, reverse=True)[:n]
    return likeliest

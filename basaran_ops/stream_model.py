"""From prompts to text: what the library's user and the server both call."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, NotReady
from .outputs import ModelInfo
from .pool import GenerationPool, SequenceWork
from .sampling_params import SamplingParams
from .text.chat_template import ChatTemplate
from .text.tokenizer import Tokenizer
from .text_stream import Choice, TextStream, Watch

Prompt = str | Sequence[int] | None
"""Text, token ids, or None for the model's own beginning."""


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
        self._loading = threading.Lock()
        """Held by one replica's thread at a time while it reads what it loaded."""

    def attach(self, pool: GenerationPool) -> None:
        """Draw from this pool. It must have been made with our `on_ready`."""
        self._pool = pool

    def on_ready(self, info: ModelInfo) -> None:
        """Read the tokenizer of a model that a replica has loaded. Raises ModelLoadError.

        Replicas may differ in how long a context fits into their memory: the shortest counts for all.
        """
        with self._loading:
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

    def check_token_ids(self, name: str, ids: Iterable[int], size: int | None = None) -> None:
        """Raise InvalidRequest, with `name` as its param, for an id outside the vocabulary, or `size`."""
        size = self._ready().info.vocab_size if size is None else size
        for token in ids:
            if not 0 <= token < size:
                raise InvalidRequest(
                    f"{name}: token id {token} is outside the vocabulary of {size}", param=name
                )

    def check_length(self, name: str, characters: int) -> None:
        """Raise ContextLengthExceeded, with `name` as its param, for a text that cannot fit the context,
        whatever its tokens are: encoding megabytes to find out takes seconds.
        """
        loaded = self._ready()
        least = loaded.tokenizer.at_least_tokens(characters)
        if least > loaded.info.context_length:
            raise ContextLengthExceeded(
                loaded.info.context_length,
                f"your {name} has at least {least} tokens. Please shorten it.",
                param=name,
            )

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        suffix: str = "",
        echo: bool = False,
        fit: bool = False,
        token_ids: bool = False,
        adapter: str | None = None,
        watch: Watch | None = None,
    ) -> TextStream:
        """Start generating `params.n` choices for each prompt; choice j of prompt i has index i * n + j.

        With `suffix` the text between prompt and suffix is generated; with `echo` each choice's text begins
        with its prompt; with `fit` max_tokens shrinks to what the prompt leaves of the context; with
        `token_ids` tokens are told also without log-probabilities; with `adapter` the model is the one with
        that adapter; `watch` says who is told. Raises InvalidRequest, ContextLengthExceeded, ModelNotFound,
        Overloaded or NotReady before anything is generated.
        """
        loaded = self._ready()
        if adapter is not None and adapter not in loaded.info.adapters:
            raise ModelNotFound(adapter)
        outputs = loaded.info.output_size
        self.check_token_ids("logit_bias", (token for token, _ in params.logit_bias), outputs)
        self.check_token_ids("stop_token_ids", params.stop_token_ids, outputs)
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
            if isinstance(prompt, str):
                self.check_length("prompt", len(prompt) + len(suffix))
            ids = _encode(loaded.tokenizer, prompt, suffix)
            # A tokenizer may have tokens that the model was never given.
            self.check_token_ids("prompt", (max(ids),))
            own = _fitted(loaded.info, ids, params, fit=fit)
            prompt_tokens += len(ids)
            text = prompt if isinstance(prompt, str) else loaded.tokenizer.decode(prompt or ())
            choices += [
                Choice(
                    SequenceWork(ids, own, own.seed_of(number), adapter),
                    loaded.tokenizer,
                    text,
                    echo=echo,
                    separate=separate,
                    token_ids=token_ids,
                )
                for number in range(params.n)
            ]
        return TextStream(self.pool, choices, prompt_tokens, watch)

    def close(self) -> None:
        """End all requests and the engines."""
        self.pool.close()

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            self.pool.check_ready()
            raise NotReady("the model is loading", code="model_loading")
        return self._loaded


def _encode(tokenizer: Tokenizer, prompt: Prompt, suffix: str) -> tuple[int, ...]:
    """Token ids of one prompt, never none."""
    for name, text in (("prompt", prompt), ("suffix", suffix)):
        if isinstance(text, str) and not _is_unicode(text):
            raise InvalidRequest(f"{name} holds half of a surrogate pair, which is no character", param=name)
    if suffix:
        try:
            return tuple(tokenizer.encode_infilling("" if prompt is None else prompt, suffix))
        except ValueError as error:
            raise InvalidRequest(f"suffix: {error}", param="suffix", code="unsupported_parameter") from None
    ids = tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else tuple(prompt or ())
    if ids:
        return ids
    try:
        return (tokenizer.prompt_start(),)
    except ValueError as error:
        raise InvalidRequest(f"prompt must not be empty: {error}", param="prompt") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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

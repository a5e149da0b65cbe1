"""The library: a model in the caller's own process.

>>> from basaran_ops import load_model
>>> with load_model("user/repo") as model:
...     for choice in model("The capital of France is", max_tokens=1, temperature=0):
...         print(choice)
{'text': ' Paris', 'index': 0, 'logprobs': None, 'finish_reason': 'length'}

The engine runs on a thread of this process: nothing is spawned, so that it works in a notebook and in a
script without a main guard. Many threads may call one model; their requests share each forward pass.
"""

from __future__ import annotations

import atexit
import difflib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypedDict, Unpack

import torch

from . import stream_model
from .checkpoint import resolve
from .choices import ChoiceStream, Forgotten, forked, make_choice, outputs_of
from .engine.loader import load_engine
from .errors import InvalidRequest, ModelClosed, ModelNotFound, NotReady
from .outputs import EngineStats, ModelInfo
from .pool import GenerationPool, ThreadTransport
from .pool.engine_loop import SteppingEngine
from .sampling_params import MAX_COUNT, SamplingParams
from .server.conversation import encode
from .server.protocol import ChatRequest, CompletionRequest
from .server.protocol.request import unsupported
from .settings import InvalidSettings, Settings
from .text.tokenizer import Tokenizer
from .text_stream import TextStream

UNLIMITED: dict[str, object] = {
    "completion_max_n": MAX_COUNT,
    "completion_max_logprobs": MAX_COUNT,
    "completion_max_prompts": MAX_COUNT,
    "server_connection_limit": MAX_COUNT,
}
"""What an operator holds clients to; the library's caller is both."""

PARAMETERS = (
    "min_tokens",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "logprobs",
    "echo",
    "suffix",
    "best_of",
    "messages",
)
"""Those that are named in a signature, for who mistypes one."""

SERVER_ONLY = ("host", "port", "server_", "management_", "log_", "engine_replicas", "engine_stall_timeout")
"""Beginnings of settings that mean nothing without a server."""

_loading = threading.Lock()
"""Held while an engine is made: a model's forward can be recorded at one place of the process at a time."""

_open_pools: set[GenerationPool] = set()
"""Closed at exit: a thread inside torch must not outlive the interpreter."""


class TokenArray(Protocol):
    """A torch tensor or a numpy array of token ids, [tokens] or [prompts, tokens]."""

    def tolist(self) -> Any: ...


Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | TokenArray | None
"""A text, token ids, or a sequence of either; None begins where the model begins a text."""


class Sampling(TypedDict, total=False):
    """What completions and conversations take beside the parameters that they name, with the API's rules."""

    top_k: int
    """Keep so many of the likeliest tokens; 0 and -1 keep all."""
    min_p: float
    """Drop tokens less probable than min_p times the likeliest; 0 to 1."""
    seed: int | None
    """The same seed gives the same tokens, whatever else runs. Choice j has seed + j."""
    stop: str | Sequence[str]
    """The text ends before any of these."""
    stop_token_ids: Sequence[int]
    """Tokens that end a choice as the model's own end token does."""
    ignore_eos: bool
    """Go on after the model's end token."""
    presence_penalty: float
    """Taken from the logit of every token that was generated; -2 to 2."""
    frequency_penalty: float
    """The same for each time that it was; -2 to 2."""
    repetition_penalty: float
    """Divides the logits of tokens in prompt and completion; 0.01 to 10, 1 is none."""
    logit_bias: Mapping[int, float]
    """Added to a token's logit, by token id; -100 to 100."""
    adapter: str | None
    """Name of the adapter to generate with; None for the model itself."""
    return_token_ids: bool
    """Tell each piece's token ids too."""


class LibraryModel:
    """A model in this process. Call it from any number of threads; close it, or use it in a with block.

    A model that nobody refers to any more closes itself, and so does every model when the program ends.
    """

    def __init__(
        self,
        model: stream_model.StreamModel,
        pool: GenerationPool,
        settings: Settings,
        forgotten: Forgotten,
    ) -> None:
        """Made by load_model()."""
        self._model = model
        self._settings = settings
        self._forgotten = forgotten
        self._closed = False
        self._process = os.getpid()
        self.pool = pool
        weakref.finalize(self, _close_in_background, pool).atexit = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.pool.status().word
        return f"<LibraryModel {self._settings.served_name} {state} on {self.device}>"

    def __call__(
        self,
        prompt: Prompts,
        min_tokens: int = 0,
        max_tokens: int | None = 16,
        temperature: float = 1.0,
        top_p: float = 1.0,
        n: int = 1,
        logprobs: int | None = None,
        echo: bool = False,
        *,
        suffix: str | None = None,
        best_of: int | None = None,
        **sampling: Unpack[Sampling],
    ) -> ChoiceStream:
        """Generate text for a prompt, or for each of several; yields pieces of choices as they grow.

        `max_tokens` None is all that the context has room for; 0 generates nothing. `temperature` 0 is
        greedy. `logprobs` k tells each token's log-probability and the k likeliest, 0 the token's alone, and
        with `echo` those of the prompt too. `best_of` generates so many choices and then yields the n
        likeliest. `suffix` asks for the text between prompt and suffix. The rest stands in `Sampling`.

        >>> (piece,) = model("one two", max_tokens=0, echo=True, logprobs=0)
        >>> piece["text"], piece["logprobs"]["tokens"], piece["logprobs"]["text_offset"]
        ('one two', ['one', ' two'], [0, 3])

        Raises InvalidRequest, whose `param` names the argument, for a value that is not allowed,
        ContextLengthExceeded for a prompt that does not fit, ModelNotFound for an unknown adapter, TypeError
        for an unknown argument, and ModelClosed: all before anything is generated.
        """
        _check_names(sampling)
        fields = {
            "prompt": _prompts(prompt),
            "min_tokens": min_tokens,
            "max_tokens": self._most_tokens if max_tokens is None else max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "n": n,
            "logprobs": logprobs,
            "echo": echo,
            "suffix": suffix,
            "best_of": best_of,
        }
        adapter = self._adapter(sampling)
        asked = CompletionRequest.check(_plain(fields | sampling), self._settings)
        stream = self._generate(
            asked.prompt,
            asked.sampling_params(self._settings),
            suffix=asked.suffix or "",
            echo=asked.echo,
            fit=max_tokens is None,
            token_ids=asked.return_token_ids,
            adapter=adapter,
        )
        return self._choices(stream, asked, asked.sequences)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        n: int = 1,
        logprobs: int | None = None,
        *,
        min_tokens: int = 0,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **sampling: Unpack[Sampling],
    ) -> ChoiceStream:
        """Answer a conversation, by the model's chat template; yields pieces of choices as calling does.

        A message has a `role` (developer, system, user, assistant or tool) and a `content`. Without
        `max_tokens` an answer may fill the context. `continue_final_message` goes on with a last message of
        the assistant's instead of beginning another; `chat_template_kwargs` are variables of the template.

        >>> question = {"role": "user", "content": "What is the capital of France?"}
        >>> "".join(piece["text"] for piece in model.chat([question], temperature=0))
        'The capital of France is Paris.'

        Raises what calling does; `tools` are not supported and refused by name.
        """
        _check_names(sampling)
        if tools:
            raise unsupported("tools")
        fields = {
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "n": n,
            "logprobs": logprobs is not None,
            "top_logprobs": logprobs,
            "min_tokens": min_tokens,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs,
        }
        adapter = self._adapter(sampling)
        try:
            asked = ChatRequest.check(_plain(fields | sampling), self._settings)
            prompt = encode(self._model, asked.messages, asked)
            stream = self._generate(
                [prompt],
                asked.sampling_params(MAX_COUNT if asked.limit is None else asked.limit),
                fit=asked.limit is None,
                token_ids=asked.return_token_ids,
                adapter=adapter,
            )
        except InvalidRequest as error:
            error.rename({"prompt": "messages", "top_logprobs": "logprobs"})
            raise
        return self._choices(stream, asked, asked.n, origin=len(self.tokenizer.decode(prompt)))

    def tokenize(self, text: str) -> torch.Tensor:
        """Token ids of a prompt, [tokens] int64, with the special tokens that the tokenizer gives a prompt.

        >>> model.tokenize("The capital of France is").shape
        torch.Size([5])
        """
        return torch.tensor(self.tokenizer.encode(text), dtype=torch.long)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; transformers' own object is its `hf`."""
        return self._model.tokenizer

    @property
    def info(self) -> ModelInfo:
        """What is known of the model: its context length in tokens, vocabulary, device, runner, slots."""
        info = self._model.info
        assert info is not None, "load_model() waits until the model is loaded"
        return info

    @property
    def device(self) -> str:
        """Where the model is, as torch names it."""
        return self.info.device

    @property
    def stats(self) -> EngineStats:
        """What the engine did in its last step, and how many sequences run and wait."""
        return self.pool.status().replicas[0].stats

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """End all calls, each with ModelClosed, then the engine. Idempotent, from any thread."""
        self._closed = True
        _close(self.pool)
        self._forgotten.close_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model cannot be copied or pickled: load it in each process")

    @property
    def _most_tokens(self) -> int:
        return self._settings.completion_max_tokens or MAX_COUNT

    def _adapter(self, sampling: Sampling) -> str | None:
        adapter = sampling.pop("adapter", None)
        if adapter is not None and adapter not in self.info.adapters:
            raise ModelNotFound(str(adapter), param="adapter")
        return adapter

    def _generate(
        self, prompts: Sequence[stream_model.Prompt], params: SamplingParams, **how: Any
    ) -> TextStream:
        self._forgotten.close_all()
        if os.getpid() != self._process:
            raise forked()
        try:
            return self._model.generate(prompts, params, **how)
        except NotReady as error:
            if error.code == "shutting_down":
                raise ModelClosed from None
            raise

    def _choices(
        self, stream: TextStream, asked: CompletionRequest | ChatRequest, sequences: int, origin: int = 0
    ) -> ChoiceStream:
        scored = asked.logprobs is not None and asked.logprobs is not False
        make = partial(make_choice, self.tokenizer, scored=scored, ids=asked.return_token_ids, origin=origin)
        return ChoiceStream(self, stream, outputs_of(stream, asked.n, sequences), make, self._forgotten)


StreamModel = LibraryModel
"""Basaran's name for what load_model() returns."""


def load_model(
    name_or_path: str | Path = "",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    half_precision: bool = False,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    **settings: Any,
) -> LibraryModel:
    """Load a model and wait until it is ready. The arguments are Basaran's.

    `name_or_path` is a hub id, a directory or a .gguf file; "" is a small default model. `adapters` are LoRA
    adapters, directory or hub id by name. Any other setting of the model, the engine or the completions goes
    by its name in lower case, such as engine_slots=8 or model_dtype="float32".

    Raises ModelLoadError if it cannot be loaded, InvalidSettings for a setting's value that is not allowed,
    TypeError for a setting that there is not.
    """
    for name in settings.keys() - Settings.model_fields.keys():
        raise _unexpected(name, Settings.model_fields)
    if others := sorted(name for name in settings if name.startswith(SERVER_ONLY)):
        raise InvalidSettings([f"{name}: it means nothing without a server" for name in others])
    if adapters is not None:
        settings["model_adapters"] = ",".join(f"{name}={source}" for name, source in adapters.items())
    chosen = Settings.of(
        UNLIMITED
        | {
            "model": str(name_or_path),
            "model_revision": revision or "",
            "model_cache_dir": str(cache_dir or ""),
            "model_load_in_8bit": load_in_8bit,
            "model_load_in_4bit": load_in_4bit,
            "model_local_files_only": local_files_only,
            "model_trust_remote_code": trust_remote_code,
            "model_half_precision": half_precision,
        }
        | settings
    )
    try:
        template = Path(chosen.model_chat_template).read_text() if chosen.model_chat_template else None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings([f"model_chat_template: {error}"]) from None
    model = stream_model.StreamModel(trust_remote_code=trust_remote_code, chat_template=template)
    forgotten = Forgotten()
    pool = _start(chosen, model, forgotten)
    return LibraryModel(model, pool, chosen, forgotten)


def _start(settings: Settings, model: stream_model.StreamModel, forgotten: Forgotten) -> GenerationPool:
    """A pool with a loaded engine. Its threads know no LibraryModel, which can be let go while they run."""

    def load(progress: Callable[[str], None]) -> tuple[SteppingEngine, ModelInfo]:
        checkpoint = resolve(settings, progress)
        with _loading:
            return load_engine(checkpoint, settings, progress)

    pool = GenerationPool(
        [lambda: ThreadTransport(load)],
        capacity=MAX_COUNT,  # nobody else shares it: a caller with many threads queues without limit
        on_ready=model.on_ready,
        on_step=lambda number, stats: forgotten.close_all(),
        patient=False,
    )
    model.attach(pool)
    pool.start()
    _open_pools.add(pool)
    try:
        pool.wait_ready()
    except Exception:
        _close(pool)
        raise
    except BaseException:
        # Ctrl-C. A load, which may be a download, cannot be interrupted: nobody waits for it, now or at exit.
        _open_pools.discard(pool)
        threading.Thread(target=pool.close, name="closing", daemon=True).start()
        raise
    return pool


def _close(pool: GenerationPool) -> None:
    pool.close(ModelClosed)
    _open_pools.discard(pool)


def _close_in_background(pool: GenerationPool) -> None:
    # Called by the garbage collector, on a thread that may hold the pool's lock.
    if pool in _open_pools:
        threading.Thread(target=_close, args=(pool,), name="closing", daemon=True).start()


# A fork has none of the threads, and would wait for them.
os.register_at_fork(after_in_child=_open_pools.clear)


@atexit.register
def _close_open_pools() -> None:
    for pool in list(_open_pools):
        _close(pool)


def _check_names(sampling: Mapping[str, object]) -> None:
    """Raise TypeError for a parameter that there is not, as Python does, with the nearest that there is."""
    for name in sampling.keys() - Sampling.__annotations__.keys():
        raise _unexpected(name, [*PARAMETERS, *Sampling.__annotations__])


def _unexpected(name: str, known: Iterable[str]) -> TypeError:
    """The error for an argument that there is not, with the nearest that there is."""
    # Of a conversation, `echo` is none, though it is one of a completion.
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    return TypeError(f"unexpected argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _prompts(prompt: Prompts) -> Any:
    """The prompt as the API has it. A tensor without tokens is no prompt at all, as in Basaran."""
    plain = _plain(prompt)
    return None if plain == [] and not isinstance(prompt, list | tuple) else plain


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists for tensors, arrays and tuples, Python's numbers for numpy's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""The library: a model in the caller's own process, in three lines.

>>> from basaran_ops import load_model  # doctest: +SKIP
>>> with load_model("user/repo") as model:  # doctest: +SKIP
...     for choice in model("once upon a time"):
...         print(choice["text"], end="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from .checkpoint import resolve
from .engine.loader import load_engine
from .outputs import ModelInfo
from .pool import GenerationPool, ThreadTransport
from .pool.engine_loop import SteppingEngine
from .sampling_params import SamplingParams
from .settings import Settings
from .stream_model import Prompt, StreamModel
from .text_stream import TextStream


class ChoiceDict(TypedDict):
    """A piece of one choice, as Basaran's."""

    text: str
    index: int
    logprobs: None
    finish_reason: str | None


class LibraryModel(StreamModel):
    """A StreamModel whose engine runs on a thread of this process. Close it, or use it in a with block."""

    def __call__(
        self,
        prompt: Prompt,
        *,
        stop: str | tuple[str, ...] = (),
        adapter: str | None = None,
        **params: Any,
    ) -> Iterator[ChoiceDict]:
        """Generate text for one prompt, by the model or one of its adapters; yields choices as they grow.

        Takes SamplingParams' fields. Raises InvalidRequest for values outside their range, TypeError for
        unknown names, ModelNotFound for an unknown adapter. Closing the iterator ends the generation.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        return _choices(self.generate([prompt], SamplingParams(stop=stops, **params), adapter=adapter))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _choices(stream: TextStream) -> Iterator[ChoiceDict]:
    try:
        for outputs in stream.outputs():
            for output in outputs:
                yield ChoiceDict(
                    text=output.text, index=output.index, logprobs=None, finish_reason=output.finish_reason
                )
    finally:
        stream.close()


def load_model(
    name_or_path: str = "",
    revision: str | None = None,
    cache_dir: str | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    half_precision: bool = False,
    adapters: Mapping[str, str | Path] | None = None,
    **settings: Any,
) -> LibraryModel:
    """Load a model and wait until it is ready. The arguments are Basaran's; any other setting goes by its
    name in lower case, such as engine_slots=8. `adapters` are MODEL_ADAPTERS: directory or hub id by name.

    Raises ModelLoadError if it cannot be loaded, pydantic.ValidationError for a bad setting.
    """
    if adapters is not None:
        settings["model_adapters"] = ",".join(f"{name}={source}" for name, source in adapters.items())
    chosen = Settings(
        model=name_or_path,
        model_revision=revision or "",
        model_cache_dir=cache_dir or "",
        model_load_in_8bit=load_in_8bit,
        model_load_in_4bit=load_in_4bit,
        model_local_files_only=local_files_only,
        model_trust_remote_code=trust_remote_code,
        model_half_precision=half_precision,
        **settings,
    )

    def load(progress: Callable[[str], None]) -> tuple[SteppingEngine, ModelInfo]:
        return load_engine(resolve(chosen, progress), chosen)

    model = LibraryModel(trust_remote_code=trust_remote_code)
    # Nobody else shares this pool: a caller with many threads queues without limit.
    pool = GenerationPool(
        [lambda: ThreadTransport(load)], capacity=2**31, on_ready=model.on_ready, patient=False
    )
    model.attach(pool)
    pool.start()
    try:
        pool.wait_ready()
    except BaseException:
        pool.close()
        raise
    return model

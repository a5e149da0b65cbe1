"""What travels between a replica and its engine, in the order it is sent."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ModelLoadError
from ..outputs import EngineStats, ModelInfo, SequenceOutput
from ..sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Add:
    """Generate a sequence."""

    sequence_id: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int | None
    adapter: str | None = None
    """None for the model itself."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a sequence. Its last output says "abort", unless it had ended already."""

    sequence_id: int


@dataclass(frozen=True, slots=True)
class Loading:
    """A stage of loading began."""

    stage: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    info: ModelInfo


@dataclass(frozen=True, slots=True)
class Step:
    """All that one step did."""

    outputs: tuple[SequenceOutput, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The engine's last message: the model could not be loaded."""

    error: ModelLoadError


@dataclass(frozen=True, slots=True)
class Crashed:
    """The engine's last message: a step raised."""

    reason: str


ToEngine = Add | Cancel
FromEngine = Loading | Ready | Step | LoadFailed | Crashed

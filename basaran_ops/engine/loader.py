"""From a checkpoint on disk to an engine that can step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel

from ..outputs import ModelInfo
from ..settings import Settings
from .adapters import Adapters
from .constraints import Constraints, decoder_start
from .devices import choose_device, choose_threads, limit_gpu_memory
from .engine import Engine
from .memory import memory_use
from .recording_file import RecordingFile
from .runners import choose_runner, make_scheduler
from .weights import Checkpoint, load_model


def load_engine(
    checkpoint: Checkpoint, settings: Settings, progress: Callable[[str], None] = lambda stage: None
) -> tuple[Engine, ModelInfo]:
    """Load the model onto its device and make an engine of it; each slow stage is told at its start.

    Raises ModelLoadError where the checkpoint is unreadable, not a generative model, or does
    not fit into memory with the asked slots and context.
    """
    started = time.perf_counter()
    progress(f"loading {checkpoint.path}")
    device = choose_device(settings.engine_device)
    _configure_torch(device, settings)
    model = load_model(checkpoint, settings, device)
    # Before the runner is chosen: its probes see the model itself, as its adapters leave it.
    adapters = Adapters(model, checkpoint.adapters)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    changes = bool(adapters.names)
    fraction = _kv_fraction(settings, device)
    progress(f"trying how {type(model).__name__} runs")
    runner = choose_runner(
        model,
        settings,
        fraction,
        changes=changes,
        exclusive=not changes,
        kept=_recording_file(checkpoint, model),
        progress=progress,
    )
    eos = frozenset(token for token in _eos_token_ids(model) if 0 <= token < runner.output_size)
    constraints = Constraints(model.generation_config, eos, decoder_start(model), runner.output_size)
    scheduler = make_scheduler(runner, settings, eos, constrained=constraints.active)
    info = ModelInfo(
        tokenizer_path=str(checkpoint.tokenizer_path),
        context_length=runner.context_length,
        completion_length=runner.completion_length,
        scores_prompts=runner.scores_prompts,
        output_size=runner.output_size,
        vocab_size=vocab_size,
        eos_token_ids=eos,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        runner=runner.name,
        slots=settings.engine_slots,
        adapters=adapters.names,
        load_seconds=time.perf_counter() - started,
    )
    return Engine(runner, scheduler, constraints, partial(memory_use, model.device), adapters), info


def _recording_file(checkpoint: Checkpoint, model: PreTrainedModel) -> RecordingFile | None:
    """Where the recording of its forward is, or will be, kept."""
    if checkpoint.cache is None:
        return None
    source = checkpoint.path / (checkpoint.gguf_file or "")
    return RecordingFile.of(model, source, checkpoint.cache / "recordings")


def _configure_torch(device: torch.device, settings: Settings) -> None:
    if device.type == "cpu":
        torch.set_num_threads(choose_threads(settings))
    limit_gpu_memory(settings, device)


def _kv_fraction(settings: Settings, device: torch.device) -> float:
    if settings.engine_kv_fraction is not None:
        return settings.engine_kv_fraction
    if device.type == "cuda":
        return 0.9
    # Replicas share the machine's memory and see the same amount free.
    return 0.5 / settings.engine_replicas


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    for source in (generation, model.config.get_text_config()):
        eos = getattr(source, "eos_token_id", None)
        if isinstance(eos, int):
            return frozenset({eos})
        if eos:
            return frozenset(eos)
    return frozenset()

"""Which device and which number type an engine uses."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ..errors import ModelLoadError
from ..settings import Settings


def choose_device(name: str) -> torch.device:
    """The device that ENGINE_DEVICE names; auto is CUDA, else MPS, else the CPU.

    Raises ModelLoadError for a device that this machine or this torch has not.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelLoadError(f"ENGINE_DEVICE={name} cannot be used: {reason}") from None
    return device


def choose_dtype(settings: Settings, device: torch.device, checkpoint: torch.dtype | None) -> torch.dtype:
    """The weights' type: as set; else the checkpoint's on a GPU, bfloat16 on a CPU that computes in it."""
    if settings.model_half_precision:
        return torch.float16
    if settings.model_load_in_8bit and settings.model_dtype == "auto":
        # bitsandbytes multiplies in float16 and would convert, with a warning, at every layer.
        return torch.float16
    if settings.model_dtype != "auto":
        dtype = getattr(torch, settings.model_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type != "cpu":
        return checkpoint or torch.float16
    return torch.bfloat16 if cpu_computes_bfloat16(torch.cpu.get_capabilities()) else torch.float32


def cpu_computes_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Whether the CPU has bfloat16 products; emulated ones are far slower than float32.

    `capabilities` is what torch.cpu.get_capabilities() returns.
    """
    names = ("avx512_bf16", "amx_bf16", "bf16")
    return any(bool(capabilities.get(name)) for name in names)


def choose_threads(settings: Settings) -> int:
    """Threads of one engine on a CPU: as set, else the usable cores shared among the replicas."""
    if settings.engine_threads is not None:
        return settings.engine_threads
    # macOS cannot say which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // settings.engine_replicas)

"""Which devices and which number type an engine uses."""

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


def visible_gpus(device: torch.device) -> int:
    """How many GPUs torch shows, where the device is one of them."""
    return torch.cuda.device_count() if device.type == "cuda" else 0


def gpus_used(device: torch.device, gpus_per_replica: int, visible: int) -> tuple[int, ...]:
    """Which of the visible GPUs the engine takes, by torch's numbers; none off CUDA.

    Raises ModelLoadError where fewer are visible than the engine is to have.
    """
    if device.type != "cuda":
        return ()
    if device != torch.device("cuda"):  # but one of them, by its number
        return (device.index,)
    if gpus_per_replica > visible:
        raise ModelLoadError(f"GPUS_PER_REPLICA={gpus_per_replica}, but torch finds {visible}")
    return tuple(range(gpus_per_replica))


def device_map_for(device: torch.device, gpus_per_replica: int, visible: int) -> str | None:
    """The device_map to load with: "auto", accelerate's even spread, over several GPUs; None for the one."""
    return "auto" if len(gpus_used(device, gpus_per_replica, visible)) > 1 else None


def limit_gpu_memory(settings: Settings, device: torch.device) -> None:
    """Hold this process to CUDA_MEMORY_FRACTION of each GPU that the engine takes."""
    if settings.cuda_memory_fraction == 1:
        return
    for index in gpus_used(device, settings.gpus_per_replica, visible_gpus(device)):
        torch.cuda.set_per_process_memory_fraction(settings.cuda_memory_fraction, index)


def choose_dtype(settings: Settings, device: torch.device, checkpoint: torch.dtype | None) -> torch.dtype:
    """The weights' type: as set; else the checkpoint's on a GPU, bfloat16 on a CPU that computes in it.

    On Apple's GPU float16 stands for bfloat16, which macOS before 14 refuses and the older chips emulate.
    """
    if settings.model_half_precision:
        return torch.float16
    if settings.model_load_in_8bit and settings.model_dtype == "auto":
        # bitsandbytes multiplies in float16 and would convert, with a warning, at every layer.
        return torch.float16
    if settings.model_dtype != "auto":
        dtype = getattr(torch, settings.model_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "mps" and checkpoint == torch.bfloat16:
        return torch.float16
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
    """Threads of one engine on a CPU: as set, else one for each core that this process may use.

    The server sets them for each of several replicas, when it shares out the cores.
    """
    if settings.engine_threads is not None:
        return settings.engine_threads
    # macOS cannot say which cores a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

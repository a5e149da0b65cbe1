"""How much memory a device has left, container limits included."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a device's memory."""

    used: int
    """Held by this process."""
    total: int


NO_MEMORY = MemoryUse(0, 0)


def memory_use(device: torch.device) -> MemoryUse:
    """What this process holds of the device's memory.

    On a CPU of what it may have: of the machine's memory, of its control group's, or of the data that the
    kernel allows a process (setrlimit(2), RLIMIT_DATA), whichever it is nearest to the end of.
    """
    if device.type == "cuda":
        return MemoryUse(
            torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
        )
    if device.type == "mps":
        return MemoryUse(torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory())
    held, group = psutil.Process().memory_info(), _cgroup(CGROUP)
    uses = [MemoryUse(held.rss, psutil.virtual_memory().total)]
    if group is not None:
        uses.append(MemoryUse(held.rss, group.total))
    allowed, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if allowed not in (0, resource.RLIM_INFINITY) and hasattr(held, "data"):
        uses.append(MemoryUse(held.data, allowed))
    return max(uses, key=lambda use: use.used / use.total)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, from which torch recovers."""
    # On a CPU and on MPS it is a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ("DefaultCPUAllocator", "MPS backend out of memory")
    )


def free_unused() -> None:
    """Give back what torch keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_bytes(*devices: torch.device) -> int:
    """Bytes that can still be allocated for what is spread evenly over the devices.

    On a CPU the smaller of what the machine and what the control group has left. On several GPUs as many
    times what the fullest has left: a layer's keys and values stay where the layer is and layers are spread
    evenly, so that each GPU takes an equal part and the fullest says when there is no more.
    """
    return min(_available(device) for device in devices) * len(devices)


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = torch.cuda.get_per_process_memory_fraction(device) * total
        return int(min(free, allowed - torch.cuda.memory_reserved(device)))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    available = int(psutil.virtual_memory().available)
    group = _cgroup(CGROUP)
    return available if group is None else min(available, max(0, group.total - group.used))


def _cgroup(root: Path) -> MemoryUse | None:
    """What all processes of the control group, v2 or v1, hold and may hold; None where there is no limit."""
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (root / limit_file).read_text().strip()
            usage = (root / usage_file).read_text().strip()
        except OSError:
            continue
        # v1 writes "no limit" as a number close to 2**63.
        if limit.isdigit() and int(limit) < 2**60:
            return MemoryUse(int(usage), int(limit))
    return None

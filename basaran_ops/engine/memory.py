"""How much memory a device has left, container limits included."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on the device.

    On a CPU the smaller of what the machine and what the control group has left.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = torch.cuda.get_per_process_memory_fraction(device) * total
        return int(min(free, allowed - torch.cuda.memory_reserved(device)))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    available = int(psutil.virtual_memory().available)
    limit = _cgroup_headroom(CGROUP)
    return available if limit is None else min(available, limit)


def _cgroup_headroom(root: Path) -> int | None:
    """Bytes below the limit of cgroup v2 or v1; None where there is no limit."""
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
            return max(0, int(limit) - int(usage))
    return None

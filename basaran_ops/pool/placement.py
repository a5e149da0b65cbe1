"""Which GPUs or which cores each replica's process gets. Decided in the server's process, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ..settings import InvalidSettings, Settings

DEVICE_FILES = Path("/dev")
DRIVER_FILES = Path("/proc/driver/nvidia/gpus")

VISIBLE = "CUDA_VISIBLE_DEVICES"


WAITING = frozenset({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"})
"""Variables that say how OpenMP's threads wait."""

SPINS = "1000"
"""About 20 microseconds: what lies between two parallel parts of a step."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What one replica's process gets."""

    environ: Mapping[str, str]
    """All of its environment."""
    cores: frozenset[int] | None = None
    """The cores it is pinned to; None for any."""
    threads: int | None = None
    """Its threads on a CPU; None for as many as it may use cores."""


def placements(settings: Settings, environ: Mapping[str, str]) -> list[Placement]:
    """One placement a replica, on this machine. Raises InvalidSettings; see `place`."""
    return place(settings, with_short_spins(environ), usable_cores(), count_gpus())


def with_short_spins(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of engines whose threads give their core up soon when they wait for each other.

    GNU OpenMP's wait for about 5 ms first. Where they share cores with the HTTP process, one often waits for
    another that has no core because it is being waited for, and steps take several times as long. What the
    operator has set stays.
    """
    own = {} if WAITING & environ.keys() else {"GOMP_SPINCOUNT": SPINS}
    return {**environ, **own}


def place(
    settings: Settings, environ: Mapping[str, str], cores: frozenset[int], gpus: int
) -> list[Placement]:
    """One placement a replica: GPUS_PER_REPLICA GPUs each, or an even share of the cores where no GPU is.

    `cores` are those that this process may use, `gpus` how many GPUs the machine shows. Raises
    InvalidSettings where more GPUs are asked for than there are.
    """
    device = settings.engine_device
    if device.startswith("cuda:") and _asked(settings) > 1:
        raise InvalidSettings(
            [f"ENGINE_DEVICE={device} names one GPU, but {_asking(settings)} are asked for"]
        )
    if device in ("auto", "cuda"):
        names = visible_gpus(environ, gpus)
        # A GPU that only torch can see is left to it, where there is nothing to divide.
        wanted = settings.gpus_per_replica > 1 or (device == "cuda" and settings.engine_replicas > 1)
        if names or wanted:
            return _on_gpus(settings, environ, names, gpus, _fair_threads(settings, cores))
    elif device == "cpu" and settings.gpus_per_replica > 1:
        raise InvalidSettings([f"GPUS_PER_REPLICA={settings.gpus_per_replica}, but ENGINE_DEVICE=cpu"])
    if device in ("auto", "cpu"):
        return _on_cores(settings, environ, cores)
    return [Placement(environ, threads=_fair_threads(settings, cores))] * settings.engine_replicas


def visible_gpus(environ: Mapping[str, str], gpus: int) -> list[str]:
    """The GPUs that CUDA would show, by the names that CUDA_VISIBLE_DEVICES takes.

    CUDA's own reading of the variable: unset for all, else a list that ends at the first entry that is no
    GPU. A UUID, of a whole GPU or of a MIG slice, is believed; so is a number where no GPU can be counted.
    """
    listed = environ.get(VISIBLE)
    if listed is None:
        return [str(index) for index in range(gpus)]
    names = (name.strip() for name in listed.split(","))
    return list(takewhile(lambda name: _names_a_gpu(name, gpus), names))


def count_gpus(devices: Path = DEVICE_FILES, driver: Path = DRIVER_FILES) -> int:
    """NVIDIA GPUs that this machine or container shows.

    A container sees the device files of its own GPUs only. Outside one, before the first use of a GPU, there
    may be none yet: then the driver's list counts.
    """
    files = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return len(files) or len(list(driver.glob("*")))


def usable_cores() -> frozenset[int]:
    """The cores that this process may use."""
    # macOS cannot say, and cannot pin: there the engine's process leaves its cores as they are.
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _names_a_gpu(name: str, gpus: int) -> bool:
    if name.isdigit():
        return gpus == 0 or int(name) < gpus
    return name.startswith(("GPU-", "MIG-"))


def _on_gpus(
    settings: Settings, environ: Mapping[str, str], names: list[str], gpus: int, threads: int | None
) -> list[Placement]:
    if _asked(settings) > len(names):
        listed = environ.get(VISIBLE)
        found = f"this machine shows {gpus}" if listed is None else f"{VISIBLE}={listed} gives {len(names)}"
        raise InvalidSettings([f"{_asking(settings)} are asked for, but {found}"])
    each = settings.gpus_per_replica
    shares = [names[first : first + each] for first in range(0, _asked(settings), each)]
    return [Placement({**environ, VISIBLE: ",".join(share)}, threads=threads) for share in shares]


def _on_cores(settings: Settings, environ: Mapping[str, str], cores: frozenset[int]) -> list[Placement]:
    """Neighbouring cores share caches: each replica gets a run of them, and no other replica's threads."""
    replicas = settings.engine_replicas
    if replicas == 1 or replicas > len(cores):
        return [Placement(environ, threads=_fair_threads(settings, cores))] * replicas
    ordered = sorted(cores)
    bounds = [len(ordered) * number // replicas for number in range(replicas + 1)]
    shares = [frozenset(ordered[bounds[n] : bounds[n + 1]]) for n in range(replicas)]
    return [Placement(environ, share, settings.engine_threads or len(share)) for share in shares]


def _fair_threads(settings: Settings, cores: frozenset[int]) -> int | None:
    """Threads of a replica that may run on all of the cores, beside the others."""
    if settings.engine_replicas == 1:
        return None
    return settings.engine_threads or max(1, len(cores) // settings.engine_replicas)


def _asked(settings: Settings) -> int:
    return settings.engine_replicas * settings.gpus_per_replica


def _asking(settings: Settings) -> str:
    return (
        f"ENGINE_REPLICAS={settings.engine_replicas} x GPUS_PER_REPLICA={settings.gpus_per_replica} = "
        f"{_asked(settings)} GPUs"
    )

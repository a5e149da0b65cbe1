from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from basaran_ops.engine import memory
from basaran_ops.engine.memory import available_bytes, memory_use

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit_file", "usage_file"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
    ids=["v2", "v1"],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_file: str, usage_file: str
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / limit_file).parent.mkdir(exist_ok=True)
    (tmp_path / limit_file).write_text("5000000\n")
    (tmp_path / usage_file).write_text("2000000\n")
    assert available_bytes(CPU) == 3000000
    assert memory_use(CPU).total == 5000000


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_leaves_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1")
    available = psutil.virtual_memory().available
    assert available_bytes(CPU) == pytest.approx(available, rel=0.2)
    assert memory_use(CPU).total == psutil.virtual_memory().total


def test_what_the_kernel_allows_a_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = psutil.Process().memory_info().data
    monkeypatch.setattr(memory.resource, "getrlimit", lambda limit: (held + 1000, -1))
    use = memory_use(CPU)
    assert use.total == held + 1000
    assert use.used == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("allowed", [0, memory.resource.RLIM_INFINITY, 2**50])
def test_a_limit_that_is_far_off_or_none_does_not(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda limit: (allowed, -1))
    assert memory_use(CPU).total < 2**50


def show_gpus(
    monkeypatch: pytest.MonkeyPatch, *, free: list[int], reserved: int = 0, share: float = 1
) -> None:
    """GPUs of 1000 bytes."""
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (free[device.index], 1000))
    monkeypatch.setattr(cuda, "get_per_process_memory_fraction", lambda device: share)
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: reserved)


def test_a_gpu_has_what_is_free_within_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, free=[600])
    assert available_bytes(torch.device("cuda", 0)) == 600
    show_gpus(monkeypatch, free=[600], reserved=300, share=0.5)
    assert available_bytes(torch.device("cuda", 0)) == 200


def test_several_gpus_have_as_many_times_what_the_fullest_has(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, free=[700, 400, 600])
    assert available_bytes(*(torch.device("cuda", index) for index in range(3))) == 1200

from __future__ import annotations

import os

import pytest
import torch

from basaran_ops.engine import devices
from basaran_ops.engine.devices import (
    choose_device,
    choose_dtype,
    choose_threads,
    cpu_computes_bfloat16,
    device_map_for,
    gpus_used,
    limit_gpu_memory,
)
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.mark.parametrize(
    ("settings", "device", "checkpoint", "bfloat16", "expected"),
    [
        (Settings(), CPU, torch.bfloat16, True, torch.bfloat16),
        (Settings(), CPU, torch.float32, True, torch.bfloat16),
        (Settings(), CPU, torch.bfloat16, False, torch.float32),
        (Settings(), CUDA, torch.bfloat16, False, torch.bfloat16),
        (Settings(), CUDA, torch.float32, False, torch.float32),
        (Settings(), CUDA, None, False, torch.float16),
        (Settings(), MPS, torch.bfloat16, False, torch.float16),
        (Settings(), MPS, torch.float32, False, torch.float32),
        (Settings(model_dtype="bfloat16"), MPS, torch.float32, False, torch.bfloat16),
        (Settings(model_dtype="float32"), CUDA, torch.bfloat16, True, torch.float32),
        (Settings(model_half_precision=True), CPU, torch.float32, True, torch.float16),
    ],
)
def test_the_weights_type(
    settings: Settings,
    device: torch.device,
    checkpoint: torch.dtype | None,
    bfloat16: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda capabilities: bfloat16)
    assert choose_dtype(settings, device, checkpoint) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_computes_bfloat16_only_with_instructions_for_it(
    capabilities: dict[str, object], expected: bool
) -> None:
    assert cpu_computes_bfloat16(capabilities) is expected


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ModelLoadError, match="ENGINE_DEVICE=vulcan cannot be used"):
        choose_device("vulcan")


def test_an_engine_has_a_thread_for_each_core_it_may_use_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: {2, 3, 7}, raising=False)
    assert choose_threads(Settings()) == 3
    assert choose_threads(Settings(engine_threads=5)) == 5
    monkeypatch.delattr(devices.os, "sched_getaffinity")
    assert choose_threads(Settings()) == os.cpu_count()


@pytest.mark.parametrize(
    ("device", "each", "visible", "expected"),
    [
        ("cpu", 1, 0, ()),
        ("mps", 1, 0, ()),
        ("cuda", 1, 1, (0,)),
        ("cuda", 1, 8, (0,)),
        ("cuda", 2, 8, (0, 1)),
        ("cuda", 4, 4, (0, 1, 2, 3)),
        ("cuda:3", 1, 8, (3,)),
    ],
)
def test_layers_are_spread_over_several_gpus_only(
    device: str, each: int, visible: int, expected: tuple[int, ...]
) -> None:
    assert gpus_used(torch.device(device), each, visible) == expected
    spread = device_map_for(torch.device(device), each, visible)
    assert spread == ("auto" if len(expected) > 1 else None)


def test_an_engine_that_misses_a_gpu_says_so() -> None:
    with pytest.raises(ModelLoadError, match="GPUS_PER_REPLICA=4, but torch finds 2"):
        gpus_used(CUDA, 4, 2)


def test_the_memory_fraction_holds_for_every_gpu_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, index: limits.append((fraction, index)),
    )
    limit_gpu_memory(Settings(gpus_per_replica=3, cuda_memory_fraction=0.8), CUDA)
    assert limits == [(0.8, 0), (0.8, 1), (0.8, 2)]
    limits.clear()
    limit_gpu_memory(Settings(), CUDA)
    limit_gpu_memory(Settings(cuda_memory_fraction=0.8), CPU)
    assert not limits

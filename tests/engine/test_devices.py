from __future__ import annotations

import pytest
import torch

from basaran_ops.engine import devices
from basaran_ops.engine.devices import choose_device, choose_dtype, choose_threads, cpu_computes_bfloat16
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("settings", "device", "checkpoint", "bfloat16", "expected"),
    [
        (Settings(), CPU, torch.bfloat16, True, torch.bfloat16),
        (Settings(), CPU, torch.float32, True, torch.bfloat16),
        (Settings(), CPU, torch.bfloat16, False, torch.float32),
        (Settings(), CUDA, torch.bfloat16, False, torch.bfloat16),
        (Settings(), CUDA, torch.float32, False, torch.float32),
        (Settings(), CUDA, None, False, torch.float16),
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


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert choose_threads(Settings(engine_replicas=2)) == 4
    assert choose_threads(Settings(engine_replicas=16)) == 1
    assert choose_threads(Settings(engine_threads=3)) == 3

"""Linear layers in 8-bit integers on a CPU: half the memory to read, twice the products a second.

Inputs and weights have a scale for each group of 64 inputs of a row, as in ZeroQuant (Yao et al. 2022):
a column of the input that is far larger than the others takes the precision of its group only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..errors import ModelLoadError
from . import forward
from .forward import PANEL, PanelLinear

GROUP = 64
"""Inputs that have a scale together."""
SCALE_BYTES = 4
OUTPUTS_AT_ONCE = 128 * PANEL
"""Outputs quantized at a time: what this takes beside the weights stays small."""

available: bool = forward.available and forward.multiplies_bytes()
"""Whether the processor multiplies 8-bit integers."""


def takes(weight: torch.Tensor) -> bool:
    """Whether a linear layer with such a weight [outputs, inputs] can have 8 bits."""
    return available and forward.takes(weight) and weight.shape[1] % GROUP == 0


def check_int8(model: PreTrainedModel, *, compiled: bool) -> None:
    """Raises ModelLoadError, saying why, where a model's linear layers cannot have 8 bits."""
    if not available:
        reason = (
            "the processor lacks AVX-512 with bfloat16 and 8-bit products, or has AMX, where it is not used"
        )
    elif model.device.type != "cpu" or model.dtype != torch.bfloat16:
        reason = f"it is for bfloat16 on a CPU, not {model.dtype} on {model.device.type}"
    elif not compiled:
        reason = "the model's operations change, so that its forward is not recorded"
    elif not any(takes(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Linear)):
        reason = f"no linear layer of {type(model).__name__} has a multiple of {GROUP} inputs"
    else:
        return
    raise ModelLoadError(f"ENGINE_INT8: {reason}")


class Int8Linear(PanelLinear):
    """x @ cat(weights).T + cat(biases) of x and weights rounded to 8 bits, in bfloat16."""

    __name__ = "int8_linear"

    kind = forward.LINEAR8

    @property
    def row_width(self) -> int:
        """Of a row's bytes, scales and sums, in numbers of bfloat16."""
        groups = self.inputs // GROUP
        return self.inputs // 2 + 2 * groups * SCALE_BYTES // 2

    @property
    def steps(self) -> int:
        """Groups of inputs."""
        return self.inputs // GROUP

    def pack(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Weights [outputs, inputs] in panels: uint8 [panels, groups, GROUP * PANEL + 4 * PANEL]."""
        panels = -(-self.outputs // PANEL)
        packed = torch.empty(panels, self.steps, (GROUP + SCALE_BYTES) * PANEL, dtype=torch.uint8)
        left = packed
        for piece in pieces:
            for some in torch.split(piece, OUTPUTS_AT_ONCE):
                used = -(-len(some) // PANEL)
                self._quantize(some.float(), left[:used])
                left = left[used:]
        return packed

    def _quantize(self, weight: torch.Tensor, panels: torch.Tensor) -> None:
        padded = torch.nn.functional.pad(weight, (0, 0, 0, -len(weight) % PANEL))
        groups = padded.view(-1, PANEL, self.steps, GROUP)
        scales = groups.abs().amax(-1) / 127
        rounded = (groups / scales.clamp(min=torch.finfo().tiny)[..., None]).round()
        # For each four inputs, those of all the outputs of the panel.
        fours = (rounded + 128).to(torch.uint8).view(-1, PANEL, self.steps, GROUP // 4, 4)
        panels[..., : GROUP * PANEL] = fours.permute(0, 2, 3, 1, 4).flatten(2)
        panels[..., GROUP * PANEL :] = scales.transpose(1, 2).contiguous().view(torch.uint8)

"""Linear layers whose weights are laid out once as oneDNN reads them fastest."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_mkldnn = torch.ops.mkldnn


def packs(weight: torch.Tensor) -> bool:
    """Whether oneDNN has a layout of its own for such weights here."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:  # noqa: SLF001
        return False
    if weight.dtype == torch.bfloat16:
        return bool(_mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no public name for it
    return weight.dtype == torch.float32


class PackedLinear:
    """x @ cat(weights).T + cat(biases): several layers that read the same x are one product."""

    __name__ = "packed_linear"

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> None:
        """Weights [outputs, inputs] of one type; biases [outputs], as many or none."""
        self.weights = tuple(weights)
        """The weights as they were; what holds them may let them go."""
        self._sizes = [weight.shape[0] for weight in weights]
        self.elements = sum(weight.numel() for weight in weights)
        """Numbers that a product reads, without the biases."""
        whole = (
            torch.cat([weight.detach() for weight in weights]) if len(weights) > 1 else weights[0].detach()
        )
        self._weight = _mkldnn._reorder_linear_weight(whole)  # noqa: SLF001
        self._bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        self._product = _mkldnn._linear_pointwise.default._op  # noqa: SLF001

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., inputs] -> [..., outputs of all]."""
        product: torch.Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        return product

    def split(self, whole: torch.Tensor) -> Sequence[torch.Tensor]:
        """The output of each layer, as views."""
        return torch.split(whole, self._sizes, dim=-1)

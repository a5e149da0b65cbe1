"""Attention over the slots by flash-attn (Dao 2023), where the package and the GPU are there.

One call writes a token's keys and values and attends, over as many keys as the slot has. Slots are read where
they lie: flash-attn takes strides for slots, positions and heads, and wants the columns of a head alone side
by side, so that [slots, heads, length, dim] is passed as the view [slots, length, heads, dim].
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Collection
from typing import Any

import torch

from .attention import LayerCall, SlotAttention, StepPlan
from .kv_cache import LayerShape, SlotKVCache
from .weights import first_line

log = logging.getLogger(__name__)

Function = Callable[..., Any]
"""flash_attn.flash_attn_with_kvcache, of flash-attn 2."""

DTYPES = (torch.float16, torch.bfloat16)
MOST_DIM = 256
DIM_STEP = 8
"""Columns of a head; another number is padded, with a copy of the whole cache in each call."""
AMPERE = (8, 0)


def why_not(
    shapes: Collection[LayerShape],
    calls: Collection[LayerCall],
    function: Function | None,
    capability: tuple[int, int] | None,
) -> str | None:
    """Why flash-attn cannot attend for layers of such shapes that ask for this; None where it can.

    `function` is None without the package, `capability` the least of the GPUs'.
    """
    dtypes = {str(shape.dtype).removeprefix("torch.") for shape in shapes if shape.dtype not in DTYPES}
    uneven = any((s.key_heads, s.key_dim) != (s.value_heads, s.value_dim) for s in shapes)
    dims = {s.key_dim for s in shapes if s.key_dim > MOST_DIM or s.key_dim % DIM_STEP}
    caps = any(call.kernel.softcap for call in calls)
    reasons = {
        "it runs on CUDA alone": any(shape.device.type != "cuda" for shape in shapes),
        "the package flash-attn is not installed": function is None,
        f"it wants compute capability 8.0, Ampere, not {capability}": (capability or (0, 0)) < AMPERE,
        f"it takes float16 and bfloat16, not {', '.join(sorted(dtypes))}": bool(dtypes),
        "keys and values differ in shape": uneven,
        f"it takes heads of multiples of 8 up to 256 columns, not {sorted(dims)}": bool(dims),
        "the model has attention sinks": any(call.kernel.sinks is not None for call in calls),
        "this version has no soft-capping": caps and function is not None and not _caps(function),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _caps(function: Function) -> bool:
    return "softcap" in inspect.signature(function).parameters


class FlashBackend:
    """A `SlotBackend`: a call for all decode rows of a layer, and one for each chunk."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def attend(
        self,
        call: LayerCall,
        plan: StepPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: SlotKVCache,
    ) -> torch.Tensor:
        """As `SlotBackend`."""
        keys, values = (cached[call.layer].transpose(1, 2) for cached in (cache.keys, cache.values))
        slots, starts = plan.places
        options = _options(call)
        parts, row = [], plan.decodes
        if row:
            # [rows, 1, heads, dim]: a row is a sequence of one token.
            q, k, v = (x[0, :, :row].transpose(0, 1)[:, None] for x in (query, key, value))
            attended = self._function(
                q, keys, values, k, v, cache_seqlens=starts[:row], cache_batch_idx=slots[:row], **options
            )
            parts.append(attended.transpose(0, 1))
        for chunk in plan.checking + plan.prefill:
            # [1, tokens, heads, dim]; where the first token goes is how many are there.
            rows, first = slice(row, row + chunk.length), slice(row, row + 1)
            q, k, v = (x[:, :, rows].transpose(1, 2) for x in (query, key, value))
            parts.append(
                self._function(
                    q,
                    keys,
                    values,
                    k,
                    v,
                    cache_seqlens=starts[first],
                    cache_batch_idx=slots[first],
                    **options,
                )
            )
            row += chunk.length
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _options(call: LayerCall) -> dict[str, Any]:
    options: dict[str, Any] = {"softmax_scale": call.kernel.scale, "causal": True}
    if call.window is not None:
        # Keys before a token's own, and after it: ours counts its own too.
        options["window_size"] = (call.window - 1, 0)
    if call.kernel.softcap:
        options["softcap"] = call.kernel.softcap
    return options


def use_flash(attention: SlotAttention, check: Callable[[], None]) -> None:
    """Attend by flash-attn from now on, if that can be done and `check` passes; the log says why not."""
    shapes = attention.shapes.values()
    on_gpu = all(shape.device.type == "cuda" for shape in shapes)
    function = installed() if on_gpu else None
    reason = why_not(shapes, attention.probed, function, least_capability(shapes) if on_gpu else None)
    if reason is None and function is not None:
        before, attention.backend = attention.backend, FlashBackend(function)
        try:
            check()
        except Exception as error:
            # Whatever a build for another torch or another GPU raises, or other logits.
            attention.backend = before
            reason = f"{type(error).__name__}: {first_line(error)}"
    if reason is None:
        log.info("it attends by flash-attn")
    else:
        log.log(
            logging.INFO if on_gpu else logging.DEBUG, "it attends by torch and not flash-attn: %s", reason
        )


def installed() -> Function | None:
    """The package's function; None where there is none that can be imported."""
    try:
        function: Function = importlib.import_module("flash_attn").flash_attn_with_kvcache
    except (ImportError, OSError, AttributeError) as error:
        log.debug("flash_attn cannot be imported: %s", error)
        return None
    return function


def least_capability(shapes: Collection[LayerShape]) -> tuple[int, int]:
    """Of the GPUs that the layers are on."""
    return min(torch.cuda.get_device_capability(shape.device) for shape in shapes)

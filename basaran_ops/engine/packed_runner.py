"""All tokens of a step in one forward pass, over unmodified transformers models."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel

from ..errors import ModelLoadError
from ..sampling_params import SamplingParams
from .attention import SlotAttention, StepPlan
from .kv_cache import SlotKVCache, bytes_per_token
from .memory import available_bytes
from .sequence import Batch, Chunk, Sequence

log = logging.getLogger(__name__)

_names = (f"basaran_slots_{number}" for number in itertools.count())

PROBE_TOKENS = 12


class PackedRunner:
    """Decode rows and prompt chunks, packed as [1, T], share every linear layer without padding.

    The model's attention is replaced by a `SlotAttention` through transformers' AttentionInterface. A probe
    at construction makes sure that every layer really calls it and that the logits are the model's own.
    Construction raises ModelLoadError if they are not, or if the cache does not fit into memory.
    """

    name = "packed"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        context_length: int | None,
        model_length: int | None,
        memory_fraction: float,
    ) -> None:
        """`context_length` is what was asked for (None: as much as fits), `model_length` what the model
        was made for (None: it does not say); `memory_fraction` bounds the cache by free memory.
        """
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise ModelLoadError(f"{type(model).__name__} takes no position_ids: it cannot run packed")
        self._model = model
        self._device = model.device
        self._attention = SlotAttention()
        with torch.inference_mode():
            reference = self._reference_logits()
            implementation = next(_names)
            AttentionInterface.register(implementation, self._attention)
            model.set_attn_implementation(implementation)
            self._check_shapes(reference)
            self.context_length = self._fit(slots, context_length, model_length, memory_fraction)
            try:
                self._attention.cache = SlotKVCache(
                    self._attention.shapes, slots=slots, max_length=self.context_length
                )
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise ModelLoadError(f"the cache cannot be allocated: {error}") from error
            self._check_chunks(reference)

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, vocab], float32: each chunk's last `logit_rows` tokens, chunk by chunk."""
        ids = [token for chunk in batch.chunks for token in chunk.token_ids]
        with torch.inference_mode(), self._planned(batch) as plan:
            assert self._attention.cache is not None
            for copy in batch.copies:
                self._attention.cache.copy(copy.source, copy.target, copy.length)
            output = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=plan.write_positions[None],
                use_cache=False,
                logits_to_keep=plan.logit_rows,
            )
            logits: torch.Tensor = output.logits[0]
            return logits.float()

    @contextmanager
    def _planned(self, batch: Batch) -> Iterator[StepPlan]:
        plan = StepPlan(batch, device=self._device, dtype=self._model.dtype)
        self._attention.plan = plan
        try:
            yield plan
        finally:
            self._attention.plan = None

    # -- the probe ------------------------------------------------------------------------------------

    def _probe_ids(self) -> torch.Tensor:
        vocab = self._model.get_input_embeddings().weight.shape[0]
        step = max(1, vocab // (PROBE_TOKENS + 1))
        ids: torch.Tensor = torch.arange(1, PROBE_TOKENS + 1, device=self._device)[None] * step % vocab
        return ids

    def _reference_logits(self) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=self._probe_ids(), use_cache=False).logits[0]
        return logits.float()

    def _check_shapes(self, reference: torch.Tensor) -> None:
        """One pass through the replaced attention: was it called at all, and did it change the logits?"""
        positions = torch.arange(PROBE_TOKENS, device=self._device)[None]
        output = self._model(input_ids=self._probe_ids(), position_ids=positions, use_cache=False)
        if not self._attention.shapes:
            raise ModelLoadError(
                f"{type(self._model).__name__} does not route its attention through transformers' "
                "AttentionInterface: it cannot run packed"
            )
        self._compare(output.logits[0].float(), reference)

    def _check_chunks(self, reference: torch.Tensor) -> None:
        """The probe prompt in three chunks, the last a decode row, must end in the same logits."""
        params = SamplingParams(max_tokens=1)
        sequence = Sequence(0, tuple(self._probe_ids()[0].tolist()), params, None)
        for start, length in ((0, 5), (5, PROBE_TOKENS - 6), (PROBE_TOKENS - 1, 1)):
            chunk = Chunk(sequence, 0, start, length)
            batch = Batch((chunk,), ()) if length == 1 else Batch((), (chunk,))
            logits = self.run(batch)
        self._compare(logits, reference[-1:])

    def _compare(self, logits: torch.Tensor, reference: torch.Tensor) -> None:
        # Rounding gave up to 0.04 in bfloat16 over the architectures tried, 0.002 in float16.
        tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.15
        if getattr(self._model, "is_quantized", False):
            # 8-bit products also quantize activations, by what else is in the batch.
            tolerance = 0.3
        error = (logits - reference).norm() / reference.norm()
        if not error <= tolerance:
            raise ModelLoadError(
                f"{type(self._model).__name__} gives other logits when run packed (relative error "
                f"{error:.1e}): its attention does something that the packed runner does not know"
            )

    # -- memory ---------------------------------------------------------------------------------------

    def _fit(self, slots: int, asked: int | None, model_length: int | None, memory_fraction: float) -> int:
        """The context length: as asked, or the largest that model and memory allow."""
        per_token = bytes_per_token(self._attention.shapes) * slots
        budget = int(available_bytes(self._device) * memory_fraction)
        fits = budget // per_token
        if asked is not None:
            if model_length is not None and asked > model_length:
                raise ModelLoadError(
                    f"ENGINE_CONTEXT_LENGTH={asked} is more than the model's {model_length} positions"
                )
            if asked > fits:
                raise ModelLoadError(_does_not_fit(slots, asked, per_token, budget, memory_fraction))
            return asked
        wanted = model_length or DEFAULT_CONTEXT_LENGTH
        # In round steps, so that the same machine gives the same length each time.
        length = wanted if fits >= wanted else fits // LENGTH_STEP * LENGTH_STEP
        if length < min(wanted, MINIMUM_CONTEXT_LENGTH):
            raise ModelLoadError(
                _does_not_fit(slots, min(wanted, MINIMUM_CONTEXT_LENGTH), per_token, budget, memory_fraction)
            )
        if length < wanted:
            log.warning(
                "context length is %d of the model's %d tokens: %d slots take %s a token, and %s may be "
                "used; lower ENGINE_SLOTS for a longer context",
                length,
                wanted,
                slots,
                _size(per_token),
                _size(budget),
            )
        return length


DEFAULT_CONTEXT_LENGTH = 4096
"""For a model that does not say how long a text it takes."""

LENGTH_STEP = 256

MINIMUM_CONTEXT_LENGTH = 512
"""Less than this is refused unless asked for by name."""


def _does_not_fit(slots: int, length: int, per_token: int, budget: int, fraction: float) -> str:
    return (
        f"ENGINE_SLOTS={slots} sequences of {length} tokens need {_size(per_token * length)} for keys and "
        f"values, but only {_size(budget)} may be used ({fraction:.0%} of what is free): lower ENGINE_SLOTS "
        "or ENGINE_CONTEXT_LENGTH, or raise ENGINE_KV_FRACTION"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**10:.0f} KiB"

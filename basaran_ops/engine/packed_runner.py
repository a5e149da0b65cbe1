"""All tokens of a step in one forward pass, over unmodified transformers models."""

from __future__ import annotations

import inspect
import itertools
import logging
import time
import weakref
from collections.abc import Callable
from functools import partial

import torch
from transformers import AttentionInterface, PreTrainedModel

from ..errors import ModelLoadError
from ..sampling_params import SamplingParams
from .attention import SlotAttention, StepPlan
from .capture import GraphBackend, backend_for
from .context_fit import ContextWish, fit_context
from .decode_graphs import DecodeGraphs
from .flash import use_flash
from .graph import CompiledForward, record
from .kv_cache import SlotKVCache, bytes_per_token
from .memory import available_bytes, free_unused
from .probe import PROBE_TOKENS, RunnerUnfit, overflows, probe_ids, relative_error, tolerance
from .recording_file import RecordingFile
from .sequence import Batch, Chunk, Sequence
from .weights import first_line

log = logging.getLogger(__name__)

_names = (f"basaran_slots_{number}" for number in itertools.count())


OTHER_ATTENTION = ("attention_chunk_size", "keep_window_size", "compress_rates")
"""Names in a config of attention that is like any other in texts as short as a probe, and only there."""


class PackedRunner:
    """Decode rows and prompt chunks, packed as [1, T], share every linear layer without padding.

    The model's attention is replaced by a `SlotAttention` through transformers' AttentionInterface. A probe
    at construction makes sure that every layer really calls it and that the logits are the model's own.
    Construction raises RunnerUnfit if they are not, with the model as it was, and ModelLoadError if the cache
    does not fit into memory.
    """

    name = "packed"
    completion_length: int | None = None
    scores_prompts = True

    def __init__(
        self,
        model: PreTrainedModel,
        wish: ContextWish,
        *,
        compiled: bool = False,
        graphs: bool = False,
        exclusive: bool = False,
        int8: bool = False,
        kept: RecordingFile | None = None,
        progress: Callable[[str], None] = lambda stage: None,
    ) -> None:
        """`compiled`: record the forward and fuse it, where that can be done (on a CPU). `graphs`: capture
        decode steps, where that can be done (on one GPU). `exclusive`: nobody else uses the model, so that
        its own copies of what is recorded can go. `int8`: linear layers in 8 bits, or ModelLoadError. `kept`:
        where the recording is kept from start to start. `progress`: is told before anything is recorded.
        """
        if model.config.is_encoder_decoder:
            raise RunnerUnfit(f"{type(model).__name__} is an encoder-decoder model")
        config = model.config.get_text_config()
        if unknown := [name for name in OTHER_ATTENTION if getattr(config, name, None)]:
            raise RunnerUnfit(f"{type(model).__name__} has {unknown[0]}, which a short probe cannot see")
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise RunnerUnfit(f"{type(model).__name__} takes no position_ids")
        self._model = model
        self._device = model.device
        self.may_overflow = overflows(model)
        self._attention = SlotAttention()
        self._compiled: CompiledForward | None = None
        self._graphs: DecodeGraphs | None = None
        self._int8 = int8
        self._kept = kept
        self._progress = progress
        own_attention = model.config._attn_implementation  # noqa: SLF001 - it has no public name
        try:
            with torch.inference_mode():
                self._take_over(wish, compiled=compiled and self._device.type == "cpu", graphs=graphs)
        except ModelLoadError:
            model.set_attn_implementation(own_attention)
            raise
        except Exception as error:
            # Whatever a model's own code raises where it is not called as it expects.
            model.set_attn_implementation(own_attention)
            raise RunnerUnfit(f"{type(model).__name__}: {type(error).__name__}: {error}") from error
        if exclusive:
            self._release()

    def _take_over(self, wish: ContextWish, *, compiled: bool, graphs: bool) -> None:
        reference = self._reference_logits()
        self.output_size = reference.shape[-1]
        implementation = next(_names)
        AttentionInterface.register(implementation, self._attention)
        # Kept for ever otherwise, and the slots of every model that this process has ever loaded with it.
        registered = AttentionInterface._global_mapping  # noqa: SLF001 - there is no public way to take it out
        weakref.finalize(self, registered.pop, implementation, None)
        self._model.set_attn_implementation(implementation)
        self._check_shapes(reference)
        self.context_length = fit_context(
            wish,
            slot_token_bytes=bytes_per_token(self._attention.shapes),
            slot_bytes=0,
            available=available_bytes(*{shape.device for shape in self._attention.shapes.values()}),
        )
        try:
            self._attention.cache = SlotKVCache(
                self._attention.shapes, slots=wish.slots, max_length=self.context_length
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelLoadError(f"the cache cannot be allocated: {error}") from error
        self._check_chunks(reference)
        use_flash(self._attention, lambda: self._check_chunks(reference))
        if compiled:
            self._compile(reference)
        backend = backend_for({shape.device for shape in self._attention.shapes.values()}) if graphs else None
        if backend is not None:
            self._capture(backend, reference)

    def _capture(self, backend: GraphBackend, reference: torch.Tensor) -> None:
        """Replay decode steps from now on, if they can be captured and give the same logits."""
        started = time.perf_counter()
        self._progress("capturing its decode steps")
        try:
            # Not bound to the runner, which would then live as long as its graphs do.
            forward = partial(_forward, self._model)
            self._graphs = DecodeGraphs(forward, self._attention, backend, self._model.dtype)
            self._check_chunks(reference)
        except Exception as error:
            self._graphs = None
            free_unused()
            log.warning(
                "its decode steps run without CUDA graphs: %s: %s", type(error).__name__, first_line(error)
            )
            return
        seconds = time.perf_counter() - started
        log.info("its decode steps are %d CUDA graphs, captured in %.1f s", len(self._graphs), seconds)

    def _compile(self, reference: torch.Tensor) -> None:
        """Run the recorded forward from now on, if it can be recorded and gives the same logits."""
        started = time.perf_counter()
        self._progress("recording and packing its forward")
        try:
            self._compiled = record(self._model, self._attention, int8=self._int8, kept=self._kept)
            self._check_chunks(reference)
        except Exception as error:
            # Whatever a fused operation raises where it is not called as it expects.
            self._compiled = None
            if self._kept:
                self._kept.remove()
                if self._kept.was_read:
                    log.warning("the recording that was kept is of no use: %s", first_line(error))
                    self._compile(reference)
                    return
            if self._int8:
                raise ModelLoadError(
                    f"ENGINE_INT8: its forward cannot be recorded: {first_line(error)}"
                ) from error
            log.info("its forward runs as it is: %s: %s", type(error).__name__, first_line(error))
            return
        seconds = time.perf_counter() - started
        how = "read" if self._kept and self._kept.was_read else "recorded"
        log.info("its forward is %d operations, %s in %.1f s", self._compiled.size, how, seconds)

    def _release(self) -> None:
        if self._compiled is not None:
            self._compiled.release(self._model)

    def forget(self, slot: int) -> None:
        """A masked key weighs 0, and 0 times what is no number is none."""
        assert self._attention.cache is not None
        with torch.inference_mode():
            self._attention.cache.clear(slot)

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, vocab], float32: each chunk's last `logit_rows` tokens, chunk by chunk."""
        assert self._attention.cache is not None
        with torch.inference_mode():
            for copy in batch.copies:
                self._attention.cache.copy(copy.source, copy.target, copy.length)
            logits = None if self._graphs is None else self._graphs.run(batch)
            if logits is None:
                plan = StepPlan(batch, device=self._device, dtype=self._model.dtype)
                with self._attention.planned(plan):
                    forward = self._compiled or partial(_forward, self._model)
                    logits = forward(plan.ids[None], plan.write_positions[None], plan.logit_rows)
            return logits[0].float()

    # -- the probe ------------------------------------------------------------------------------------

    def _probe_ids(self) -> torch.Tensor:
        return torch.tensor([probe_ids(self._model)], device=self._device)

    def _reference_logits(self) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=self._probe_ids(), use_cache=False).logits[0]
        return logits.float()

    def _check_shapes(self, reference: torch.Tensor) -> None:
        """One pass through the replaced attention: was it called at all, and did it change the logits?"""
        positions = torch.arange(PROBE_TOKENS, device=self._device)[None]
        output = self._model(input_ids=self._probe_ids(), position_ids=positions, use_cache=False)
        if not self._attention.shapes:
            raise RunnerUnfit(
                f"{type(self._model).__name__} does not route its attention through transformers' "
                "AttentionInterface"
            )
        self._compare(output.logits[0], reference)

    def _check_chunks(self, reference: torch.Tensor) -> None:
        """The probe prompt in three chunks, the last a decode row, must end in the same logits."""
        params = SamplingParams(max_tokens=1)
        sequence = Sequence(0, tuple(probe_ids(self._model)), params, None)
        for start, length in ((0, 5), (5, PROBE_TOKENS - 6), (PROBE_TOKENS - 1, 1)):
            chunk = Chunk(sequence, 0, start, length)
            batch = Batch((chunk,), ()) if length == 1 else Batch((), (chunk,))
            logits = self.run(batch)
        self._compare(logits, reference[-1:])

    def _compare(self, logits: torch.Tensor, reference: torch.Tensor) -> None:
        error = relative_error(logits, reference)
        if error > tolerance(self._model):
            raise RunnerUnfit(
                f"{type(self._model).__name__} gives other logits when run packed (relative error "
                f"{error:.1e}): its attention does something that the packed runner does not know"
            )


def _forward(
    model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    output = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=rows)
    logits: torch.Tensor = output.logits
    return logits

"""The steps of transformers' `generate()`, one at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel

from .cohort import Cohort
from .sequence import Chunk, Sequence

MODULE_STATES = ("conv1d_state", "recurrent_states")
"""Attributes of modules that hold what a model remembers of a text, where its cache does not."""


@dataclass(slots=True)
class CohortState:
    """What the model remembers of a cohort's rows."""

    sequences: tuple[Sequence, ...]
    """The sequence of each row, some of which may have ended."""
    input_ids: torch.Tensor
    """[rows, tokens]: prompt and output, or the decoder's tokens of an encoder-decoder model."""
    kwargs: dict[str, Any]
    """Arguments of the model's forward pass beside the ids: masks, positions, its cache or state."""
    config: GenerationConfig


class GenerateSteps:
    """What `generate()` prepares before its loop, and what it does between two steps, called as it is called
    there: whatever it can generate with can be stepped.

    A batch is left-padded, an encoder's right-padded. Runs under torch.inference_mode().
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._device = model.device
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        self._config = _plain_config(model)
        self._keepers = [
            module for module in model.modules() if any(hasattr(module, name) for name in MODULE_STATES)
        ]

    def prefill(self, cohort: Cohort, chunks: Seq[Chunk]) -> torch.Tensor:
        """Read prompts, or the next part of one, and return the rows of logits that are wanted."""
        if cohort.state is None:
            cohort.state = self._begin([chunk.sequence for chunk in chunks])
        state: CohortState = cohort.state
        if len(chunks) == 1 and not self._encoder_decoder:
            return self._forward_part(state, chunks[0])
        logits = self._remember(state, self._model._prefill(state.input_ids, state.config, state.kwargs))
        return logits[[row for row, chunk in enumerate(chunks) if chunk.samples], -1]

    def advance(self, cohort: Cohort, chunks: Seq[Chunk]) -> torch.Tensor:
        """One token for each live row; [live rows, vocab]."""
        state: CohortState = cohort.state
        live = [chunk.sequence for chunk in chunks]
        model = self._model
        new = [sequence.tokens[-1] for sequence in state.sequences]
        state.input_ids = torch.cat(
            [state.input_ids, torch.tensor(new, device=self._device)[:, None]], dim=-1
        )
        inputs = model.prepare_inputs_for_generation(
            state.input_ids, next_sequence_length=1 if state.kwargs["use_cache"] else None, **state.kwargs
        )
        logits = self._remember(state, model(**inputs, return_dict=True))[:, -1]
        if len(live) == len(state.sequences):
            return logits
        rows = [state.sequences.index(sequence) for sequence in live]
        return logits[torch.tensor(rows, device=self._device)]

    def drop(self, cohort: Cohort, live: Seq[Sequence]) -> None:
        """Keep the rows of these sequences alone. Raises ValueError where something has no rows to choose."""
        state: CohortState = cohort.state
        if len(live) == len(state.sequences):
            return
        rows = torch.tensor([state.sequences.index(sequence) for sequence in live], device=self._device)
        size = len(state.sequences)
        state.kwargs = {name: _select(value, rows, size) for name, value in state.kwargs.items()}
        state.input_ids = state.input_ids[rows]
        state.sequences = tuple(live)

    def _begin(self, sequences: Seq[Sequence]) -> CohortState:
        """What `generate()` has before its loop: for an encoder-decoder model the encoder has run."""
        self._forget()
        ids, mask = self._pad([sequence.tokens[: sequence.prompt_length] for sequence in sequences])
        begun: list[CohortState] = []

        def capture(model: PreTrainedModel, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            config = kwargs.pop("generation_config")
            for name in ("logits_processor", "stopping_criteria", "synced_gpus", "streamer"):
                kwargs.pop(name, None)
            begun.append(CohortState(tuple(sequences), input_ids, kwargs, config))
            return input_ids

        own = self._model.generation_config
        # What is None in ours would be taken from the model's: stop strings, which want a tokenizer.
        self._model.generation_config = self._config
        try:
            self._model.generate(
                ids, attention_mask=mask, generation_config=self._config, custom_generate=capture
            )
        finally:
            self._model.generation_config = own
        return begun[0]

    def _forget(self) -> None:
        """RecurrentGemma keeps its state in its modules, where the next prompt of one token would find it."""
        for module in self._keepers:
            for name in MODULE_STATES:
                if hasattr(module, name):
                    setattr(module, name, None)

    def _forward_part(self, state: CohortState, chunk: Chunk) -> torch.Tensor:
        """A single prompt, or the next part of it."""
        kwargs = dict(state.kwargs)
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, : chunk.end]
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"][..., chunk.start : chunk.end]
        inputs = self._model.prepare_inputs_for_generation(
            state.input_ids[:, chunk.start : chunk.end], is_first_iteration=chunk.start == 0, **kwargs
        )
        if chunk.scored and "logits_to_keep" in inputs:
            # Here, since some models set it themselves where they prepare their inputs.
            inputs["logits_to_keep"] = 0
        output = self._model(**inputs, return_dict=True)
        logits: torch.Tensor = output.logits[0]
        if chunk.end == chunk.sequence.prompt_length:
            self._remember(state, output)
        else:
            state.kwargs["past_key_values"] = output.past_key_values
        return logits[logits.shape[0] - chunk.logit_rows :]

    def _remember(self, state: CohortState, output: Any) -> torch.Tensor:
        state.kwargs = self._model._update_model_kwargs_for_generation(
            output, state.kwargs, is_encoder_decoder=self._encoder_decoder
        )
        logits: torch.Tensor = output.logits
        return logits

    def _pad(self, prompts: Seq[Seq[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, [rows, longest], padded on the side where the model wants it."""
        longest = max(len(prompt) for prompt in prompts)
        pad = self._config.pad_token_id
        ids, mask = [], []
        for prompt in prompts:
            padding, ones, zeros = (
                [pad] * (longest - len(prompt)),
                [1] * len(prompt),
                [0] * (longest - len(prompt)),
            )
            ids.append([*prompt, *padding] if self._encoder_decoder else [*padding, *prompt])
            mask.append(ones + zeros if self._encoder_decoder else zeros + ones)
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)


def _plain_config(model: PreTrainedModel) -> GenerationConfig:
    """The model's own config without what is the sampler's part or only matters to generate()'s loop."""
    config = copy.deepcopy(model.generation_config) or GenerationConfig()
    plain = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )
    if plain.pad_token_id is None:
        # Masked, whatever it is.
        plain.pad_token_id = 0
    # All that is None would be taken from the model's config.
    plain.max_new_tokens = 2**20
    plain.num_beams = plain.num_return_sequences = 1
    plain.do_sample = False
    plain.use_cache = True
    if config.cache_implementation is not None:
        plain.cache_implementation = "dynamic"
    return plain


def _select(value: Any, rows: torch.Tensor, size: int) -> Any:
    """The same with these rows of `size` alone. Raises ValueError for what has rows in another place."""
    if isinstance(value, torch.Tensor):
        return _select_rows(value, rows, size)
    if isinstance(value, Cache):
        value.reorder_cache(rows)
        return value
    if isinstance(value, dict):
        chosen = {name: _select(item, rows, size) for name, item in value.items()}
        return type(value)(**chosen)
    if isinstance(value, (list, tuple)):
        return type(value)(_select(item, rows, size) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{type(value).__name__} has no rows that we know")


def _select_rows(tensor: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
    if tensor.dim() > 0 and tensor.shape[0] == size:
        return tensor[rows]
    if tensor.dim() > 0 and tensor.shape[0] == 1:
        return tensor
    if tensor.dim() == 3 and tensor.shape[1] == size:
        # Positions of several kinds, [kinds, rows, tokens].
        return tensor[:, rows]
    raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no {size} rows")

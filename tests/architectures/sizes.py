"""Small sizes for any config: each architecture is given those that its config knows."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..tiny_models import BOS, EOS, VOCAB

POSITIONS = 512
WINDOW = 9  # Shorter than a test's longer prompts, so that it masks.

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": None,
    "forced_eos_token_id": None,
    "decoder_start_token_id": BOS,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "emb_dim": 64,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "d_ff": 64,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "d_kv": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": POSITIONS,
    "model_max_length": POSITIONS,
    "n_positions": POSITIONS,
    "max_seq_len": POSITIONS,
    # Latent attention, and the indexers that choose what it attends to
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    # Experts
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    # State spaces and linear attention
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def sized(model_type: str, **values: object) -> PreTrainedConfig:
    """A config of the small sizes; `values` go before them."""
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    defaults = {
        each.name: getattr(config_class, each.name, None) for each in dataclasses.fields(config_class)
    }
    sizes = {name: value for name, value in SIZES.items() if name in defaults}
    if "kv_lora_rank" in defaults:  # Latent attention has no groups of query heads.
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    # Where they are off by default, a checkpoint that has them is the exception.
    if defaults.get("sliding_window") is not None:
        sizes["sliding_window"] = WINDOW
    if defaults.get("pad_token_id") is not None:
        sizes["pad_token_id"] = EOS
    # Some configs write into the values that they are given.
    return config_class(**deepcopy(sizes | values))

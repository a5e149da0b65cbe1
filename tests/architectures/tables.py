"""What each architecture needs beside the small sizes."""

from __future__ import annotations

from typing import Any

from ..tiny_models import VOCAB
from .sizes import POSITIONS, WINDOW, sized

# At least one layer of each kind, whatever period the family repeats them with.
_SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention", "conv"]}
_INDEXED: dict[str, Any] = {"head_dim": 8}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

DECODERS: dict[str, dict[str, Any]] = {
    "afmoe": _SLIDING,
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk1": {},
    "axk2": _INDEXED,
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {},
    "cohere2": _SLIDING,
    "cohere2_moe": _SLIDING,
    "cohere_compass_text": _SLIDING
    | {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": None}},
    "cpmant": {"dim_head": 16, "dim_ff": 64, "prompt_length": 4, "prompt_types": 4},
    "cwm": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {},
    "deepseek_v3": {},
    "deepseek_v32": _INDEXED,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "diffllama": {},
    "doge": {},
    "dots1": _SLIDING,
    "dots3_note_text": _INDEXED
    | {
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "sliding_window": WINDOW,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_qk_rope_head_dim": 8,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 12,
        "swa_head_dim": 24,
    },
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": _SLIDING,
    "exaone_moe": _SLIDING,
    "falcon": {},
    "flex_olmo": {},
    "flint": _SLIDING,
    "gemma": {},
    "gemma2": {},
    "gemma3_text": _SLIDING,
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": _INDEXED,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {"rope_parameters": _ROPE},
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoeshared": {},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "hyperclovax": {},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jetmoe": {"kv_channels": 16},
    "kolibri1": _SLIDING,
    "laguna": _SLIDING,
    "llama": {},
    "llama4_text": {
        "attention_chunk_size": WINDOW,
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
    },
    "longcat_flash": {
        "head_dim": 8,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
    },
    "mellum": _SLIDING,
    "mimo_v2_flash": {},
    "minicpm3": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"]},
    "ministral": _SLIDING,
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _SLIDING,
    "olmoe": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "vaultgemma": {},
    "youtu": {},
}

# What they take beside text is kept as small as their configs allow.
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

T5S: dict[str, dict[str, Any]] = {
    "longt5": {"local_radius": 7, "global_block_size": 4},
    "mt5": {},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5": {},
    "umt5": {},
}

DECODERS |= {
    "gemma3": {
        "text_config": sized("gemma3_text", **DECODERS["gemma3_text"]).to_dict(),
        "vision_config": _VISION,
    },
    "gemma4": {
        "text_config": sized("gemma4_text", **DECODERS["gemma4_text"]).to_dict(),
        "vision_config": None,
        "audio_config": None,
    },
    "gemma4_unified": {
        "text_config": sized("gemma4_unified_text").to_dict(),
        "vision_config": None,
        "audio_config": None,
    },
}

WIDE_DECODERS: dict[str, dict[str, Any]] = {
    "biogpt": {},
    "ctrl": {"dff": 64},
    "openai-gpt": {},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local"],
        "attention_head_size": 16,
        "feed_forward_size": 64,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 48],
        "num_buckets": 8,
        "hash_seed": 0,
    },
    "xglm": {},
    "xlnet": {"d_head": 16, "d_inner": 64},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

STATE_SPACES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _LINEAR,
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 128},
    "falcon_mamba": {},
    "granitemoehybrid": _LINEAR,
    "inkling2_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": WINDOW,
        "rel_extent": 32,
        "unpadded_vocab_size": VOCAB,
    },
    "inkling_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": WINDOW,
        "rel_extent": 32,
        "unpadded_vocab_size": VOCAB,
        "local_layer_ids": [0, 2],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR,
    "lfm2": _CONVOLUTION,
    "lfm2_moe": _CONVOLUTION | {"num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention"]},
    "mamba": {},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "minimax": {"block_size": 8},
    "nemotron_h": {
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "linear_attention", "mlp"],
    },
    "olmo_hybrid": {},
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp_text": _LINEAR
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"attention_window_size": WINDOW, "lru_width": 64},
    "rwkv": {"context_length": POSITIONS},
    "xlstm": {"hidden_size": 128},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention"]},
}

_BERT: dict[str, Any] = {"is_decoder": True}
BERTS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "bert-generation": _BERT,
    "big_bird": _BERT,
    "camembert": _BERT,
    "data2vec-text": _BERT,
    "electra": _BERT,
    "ernie": _BERT,
    "megatron-bert": _BERT,
    "rembert": _BERT,
    "roberta": _BERT,
    "roberta-prelayernorm": _BERT,
    "roc_bert": _BERT
    | {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": VOCAB,
        "shape_embed_dim": 16,
        "shape_vocab_size": VOCAB,
    },
    "roformer": _BERT,
    "xlm": {"causal": True, "mask_token_id": 3},
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
    "xmod": _BERT | {"default_language": "en_XX"},
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart_decoder": ("bart", {"is_decoder": True, "is_encoder_decoder": False}),
    "falcon_alibi": ("falcon", {"alibi": True, "multi_query": False}),
    "falcon_new_decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode_multi_head": ("gpt_bigcode", {"multi_query": False}),
    "longt5_global": (
        "longt5",
        {"encoder_attention_type": "transient-global", "local_radius": 7, "global_block_size": 4},
    ),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "opt_post_norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "qwen2_sliding": ("qwen2", _SLIDING | {"use_sliding_window": True}),
}

PRE_NORM_ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {},
    "blenderbot": {"encoder_no_repeat_ngram_size": 0},  # It is no part of the network.
    "m2m_100": {},
    "mbart": {},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "pegasus": {"scale_embedding": True},
    "pegasus_x": {"block_size": 8, "num_global_tokens": 4},
    "seamless_m4t": {},
    "seamless_m4t_v2": {},
    "t5gemma": {"encoder": sized("t5_gemma_module").to_dict(), "decoder": sized("t5_gemma_module").to_dict()},
    "t5gemma2": {
        "encoder": {"text_config": sized("t5gemma2_text").to_dict(), "vision_config": _VISION},
        "decoder": sized("t5gemma2_decoder").to_dict(),
    },
}

POST_NORM_ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "bart": {},
    "blenderbot-small": {},
    "encoder-decoder": {
        "encoder": sized("bert").to_dict(),
        "decoder": sized("bert", is_decoder=True, add_cross_attention=True).to_dict(),
    },
    "fsmt": {"src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB, "num_beams": 1},
    "led": {
        "attention_window": 8,
        "max_encoder_position_embeddings": POSITIONS,
        "max_decoder_position_embeddings": POSITIONS,
    },
    "marian": {"scale_embedding": True},
    "mvp": {},
    "plbart": {},
    "prophetnet": {},
}

"""Configurations of every family: those of the catalogue, and small ones that take each family's turns."""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4000,
    "max_position_embeddings": 2048,
}
_WITHOUT_GROUPS = {key: value for key, value in _SMALL.items() if key != "num_key_value_heads"}
_LATENT: dict[str, Any] = {
    **_WITHOUT_GROUPS,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}

#: By name: what no published configuration of the catalogue says.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2, its own width": {
        "model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 99, "n_positions": 32,
        "n_inner": 96,
    },
    "gpt2, names of others": {
        "model_type": "gpt2", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99,
    },
    "gpt_neox without biases": {**_WITHOUT_GROUPS, "model_type": "gpt_neox", "attention_bias": False},
    "opt without biases": {**_WITHOUT_GROUPS, "model_type": "opt", "ffn_dim": 512, "enable_bias": False},
    "opt, plain norms": {
        **_WITHOUT_GROUPS, "model_type": "opt", "ffn_dim": 512, "layer_norm_elementwise_affine": False,
    },
    "opt, projected": {**_WITHOUT_GROUPS, "model_type": "opt", "ffn_dim": 512, "word_embed_proj_dim": 128},
    "falcon, many queries": {**_WITHOUT_GROUPS, "model_type": "falcon", "multi_query": False, "bias": True},
    "falcon in sequence": {**_WITHOUT_GROUPS, "model_type": "falcon", "parallel_attn": False},
    "falcon, one norm": {
        **_WITHOUT_GROUPS, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "llama with biases": {**_SMALL, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, wide heads": {**_SMALL, "model_type": "llama", "head_dim": 64},
    "mistral, wide heads": {**_SMALL, "model_type": "mistral", "head_dim": 64},
    "qwen3 with biases": {**_SMALL, "model_type": "qwen3", "attention_bias": True},
    "gemma with biases": {**_SMALL, "model_type": "gemma", "attention_bias": True, "head_dim": 64},
    "gemma3 of defaults": {
        "model_type": "gemma3_text", "num_hidden_layers": 2, "hidden_size": 640, "intermediate_size": 96,
    },
    "phi3, grouped": {**_SMALL, "model_type": "phi3", "pad_token_id": 0},
    "stablelm, norms of heads": {
        **_SMALL, "model_type": "stablelm", "qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True,
    },
    "mixtral, wide heads": {**_SMALL, "model_type": "mixtral", "head_dim": 64, "num_local_experts": 4},
    "qwen2_moe, some dense": {
        **_SMALL, "model_type": "qwen2_moe", "num_experts": 8, "decoder_sparse_step": 2, "mlp_only_layers": [1],
    },
    "qwen2_moe without biases": {**_SMALL, "model_type": "qwen2_moe", "num_experts": 8, "qkv_bias": False},
    "qwen3_moe, some dense": {**_SMALL, "model_type": "qwen3_moe", "num_experts": 8, "mlp_only_layers": [0, 2]},
    "deepseek_v2, whole queries": {
        **_LATENT, "model_type": "deepseek_v2", "q_lora_rank": None, "first_k_dense_replace": 1,
    },
    "deepseek_v2 with biases": {**_LATENT, "model_type": "deepseek_v2", "q_lora_rank": 96, "attention_bias": True},
    "deepseek_v3, all sparse": {
        **_LATENT, "model_type": "deepseek_v3", "q_lora_rank": 96, "first_k_dense_replace": 0, "n_group": 2,
        "topk_group": 1,
    },
}  # fmt: skip

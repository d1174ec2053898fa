"""Mixtures of experts: Mixtral, Qwen 2 and 3 MoE, DeepSeek V2 and V3.

Names, shapes and order are those of transformers' models/{mixtral,qwen2_moe,qwen3_moe,deepseek_v2,deepseek_v3}/
modeling_*.py (5.17 to 5.23): all experts of a block are two tensors, ``gate_up_proj`` (E, 2f, h) and ``down_proj``
(E, h, f). Legend: h ``hidden_size``, E experts, f width of one, a heads.
"""

from __future__ import annotations

from dataclasses import replace

from dsplan.errors import InputError
from dsplan.families.config import Config
from dsplan.families.decoder import WIDE_SIGMOID, WIDE_SOFTMAX, Decoder, Experts, Latent
from dsplan.families.llama import attention, decoder, gated, window_in_use
from dsplan.families.parameter import Parameter, linear, norm

#: How DeepSeek V2 chooses the experts of a token: of all, or of a few groups.
_LIMITED = "group_limited_greedy"
_CHOICES_OF_EXPERTS = ("greedy", _LIMITED)
#: Experts of one block: the most published are 512.
MOST_EXPERTS = 65_536


def mixtral(c: Config) -> Decoder:
    """Mixtral (models/mixtral): every MLP is a mixture, without a shared expert."""
    h, heads, f = c.count("hidden_size"), c.num_heads(), c.count("intermediate_size")
    d = c.optional_count("head_dim") or c.divided(h, heads)
    k = c.key_value_heads(heads, 8)
    num = c.count("num_local_experts", 8, most=MOST_EXPERTS)
    block = (
        *attention(h, heads, k, d),
        Parameter("mlp.gate.weight", (num, h)),
        *_experts(num, h, f),
        *_norms(h),
    )
    found = decoder(
        c,
        "MixtralForCausalLM",
        head_size=d,
        key_value_heads=k,
        positions=c.count("max_position_embeddings", 131072),
        block=block,
    )
    window = c.optional_count("sliding_window")
    return replace(
        found,
        windows=(window,) * found.num_layers,
        beyond_formulas=_router_extras(c),
        experts=Experts(num=num, per_token=_per_token(c, num, 2), size=f, module="mlp", wide_weights=True),
    )


def qwen2_moe(c: Config) -> Decoder:
    """Qwen 1.5 and 2 MoE (models/qwen2_moe): a shared expert behind a gate of its own; some layers are dense."""
    h, heads = c.count("hidden_size"), c.num_heads()
    d, k = c.optional_count("head_dim") or c.divided(h, heads), c.key_value_heads(heads, 16)
    num = c.count("num_experts", 60, most=MOST_EXPERTS)
    f, shared = c.count("moe_intermediate_size", 1408), c.count("shared_expert_intermediate_size", 5632)
    bias = c.flag("qkv_bias", True)
    core = attention(h, heads, k, d, qkv_bias=bias)
    sparse = (
        *core,
        Parameter("mlp.gate.weight", (num, h)),
        *_experts(num, h, f),
        *gated(h, shared, name="mlp.shared_expert"),
        *linear("mlp.shared_expert_gate", 1, h),
        *_norms(h),
    )
    dense = (*core, *gated(h, c.count("intermediate_size")), *_norms(h))
    found = decoder(
        c,
        "Qwen2MoeForCausalLM",
        head_size=d,
        key_value_heads=k,
        positions=c.count("max_position_embeddings", 32768),
        kinds=(sparse, dense),
        layers=_sparse_layers(c),
        qkv_bias=bias,
    )
    return replace(
        found,
        experts=Experts(
            num=num,
            per_token=_per_token(c, num, 4),
            size=f,
            module="mlp",
            shared_size=shared,
            normalised=c.flag("norm_topk_prob", False),
        ),
        beyond_formulas=_router_extras(c),
        windows=tuple(
            window_in_use(c) if layer % 2 == 0 and layer < c.amount("max_window_layers", 28) else None
            for layer in range(found.num_layers)
        ),
    )


def qwen3_moe(c: Config) -> Decoder:
    """Qwen 3 MoE (models/qwen3_moe): norms of q and k, no shared expert; some layers may be dense."""
    h, heads = c.count("hidden_size"), c.num_heads()
    # Not Qwen 3's 128: configuration_qwen3_moe.py has no head_dim of its own.
    d, k = c.optional_count("head_dim") or c.divided(h, heads), c.key_value_heads(heads, 4)
    num = c.count("num_experts", 128, most=MOST_EXPERTS)
    f = c.count("moe_intermediate_size", 768)
    bias = c.flag("attention_bias", False)
    core = (
        *attention(h, heads, k, d, qkv_bias=bias, output_bias=bias),
        *norm("self_attn.q_norm", d),
        *norm("self_attn.k_norm", d),
    )
    sparse = (*core, *_experts(num, h, f), Parameter("mlp.gate.weight", (num, h)), *_norms(h))
    dense = (*core, *gated(h, c.count("intermediate_size")), *_norms(h))
    found = decoder(
        c,
        "Qwen3MoeForCausalLM",
        head_size=d,
        key_value_heads=k,
        positions=c.count("max_position_embeddings", 32768),
        kinds=(sparse, dense),
        layers=_sparse_layers(c),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )
    return replace(
        found,
        experts=Experts(
            num=num,
            per_token=_per_token(c, num, 8),
            size=f,
            module="mlp",
            normalised=c.flag("norm_topk_prob", False),
        ),
        beyond_formulas=_router_extras(c),
        windows=(window_in_use(c),) * found.num_layers,
    )


def deepseek_v2(c: Config) -> Decoder:
    """DeepSeek V2 (models/deepseek_v2): latent attention, the first layers dense, shared experts."""
    return _deepseek(c, "DeepseekV2", num=64, shared=2, width=1407, dense=0, positions=2048, per_token=None)


def deepseek_v3(c: Config) -> Decoder:
    """DeepSeek V3 and R1 (models/deepseek_v3): as V2; the heads that predict further tokens are not part of it."""
    return _deepseek(c, "DeepseekV3", num=256, shared=1, width=2048, dense=3, positions=4096, per_token=8)


def _deepseek(
    c: Config,
    name: str,
    *,
    num: int,
    shared: int,
    width: int,
    dense: int,
    positions: int,
    per_token: int | None,
) -> Decoder:
    h, heads = c.count("hidden_size"), c.num_heads()
    rank_kv = c.count("kv_lora_rank", 512)
    rank_q = None if c.is_null("q_lora_rank") else c.count("q_lora_rank", 1536)
    nope, rope = c.count("qk_nope_head_dim", 128), c.count("qk_rope_head_dim", 64)
    value = c.count("v_head_dim", 128)
    bias = c.flag("attention_bias", False)
    d = nope + rope
    queries = (
        linear("self_attn.q_proj", heads * d, h)
        if rank_q is None
        else (
            *linear("self_attn.q_a_proj", rank_q, h, bias=bias),
            *norm("self_attn.q_a_layernorm", rank_q),
            *linear("self_attn.q_b_proj", heads * d, rank_q),
        )
    )
    core = (
        *queries,
        *linear("self_attn.kv_a_proj_with_mqa", rank_kv + rope, h, bias=bias),
        *norm("self_attn.kv_a_layernorm", rank_kv),
        *linear("self_attn.kv_b_proj", heads * (nope + value), rank_kv),
        *linear("self_attn.o_proj", h, heads * value, bias=bias),
    )
    experts = c.count("n_routed_experts", num, most=MOST_EXPERTS)
    f = c.count("moe_intermediate_size", width)
    shared_size = f * c.count("n_shared_experts", shared, most=MOST_EXPERTS)
    sparse = (
        *core,
        *_experts(experts, h, f),
        Parameter("mlp.gate.weight", (experts, h)),
        *gated(h, shared_size, name="mlp.shared_experts"),
        *_norms(h),
    )
    mlp_bias = c.flag("mlp_bias", False) if name == "DeepseekV2" else False
    if mlp_bias:
        raise InputError(f"{c.where}: mlp_bias: true is not planned for {c.family}; no published model has it")
    plain = (*core, *gated(h, c.count("intermediate_size")), *_norms(h))
    layers = c.num_layers()
    first = c.amount("first_k_dense_replace", dense)
    found = decoder(
        c,
        f"{name}ForCausalLM",
        head_size=d,
        key_value_heads=c.key_value_heads(heads, heads),
        positions=c.count("max_position_embeddings", positions),
        kinds=(sparse, plain),
        layers=tuple(int(layer < first) for layer in range(layers)),
        rotary_size=rope,
    )
    second = name == "DeepseekV2"
    limited = not second or c.name("topk_method", "greedy", _CHOICES_OF_EXPERTS) == _LIMITED
    return replace(
        found,
        output_bias=bias,
        experts=Experts(
            num=experts,
            per_token=_per_token(c, experts, per_token or 1),
            size=f,
            module="mlp",
            shared_size=shared_size,
            wide_weights=True,
            router=WIDE_SOFTMAX if second else WIDE_SIGMOID,
            normalised=not second and c.flag("norm_topk_prob", True),
            groups=_groups(c, experts, 0 if second else 8) if limited else 0,
        ),
        latent=Latent(
            query_rank=rank_q,
            rank=rank_kv,
            plain=nope,
            rotary=rope,
            value=value,
            interleaved=not second and c.flag("rope_interleave", True),
        ),
    )


def _router_extras(c: Config) -> tuple[str, ...]:
    """What routers do beside routing (modeling_mixtral.py ``load_balancing_loss_func``, ``MixtralSparseMoeBlock``).

    Under ``output_router_logits`` those of all layers live until the loss, which makes one-hot masks of them.
    """
    asked = {
        "output_router_logits": c.flag("output_router_logits", False),
        "router_jitter_noise": c.probability("router_jitter_noise") > 0,
    }
    return tuple(key for key, holds in asked.items() if holds)


def _groups(c: Config, experts: int, default: int) -> int:
    """``n_group``: the experts' groups, all of one size.

    Raises:
        InputError: groups that do not divide the experts, or none where a token is limited to some of them.
    """
    found = c.count("n_group", default or None, most=MOST_EXPERTS)
    if experts % found:
        raise InputError(f"{c.where}: n_group: {found} is not allowed; it must divide the {experts} experts")
    return found


def _experts(num: int, h: int, f: int) -> tuple[Parameter, ...]:
    """``*Experts``: gate and up of all experts in one tensor (E, 2f, h), down in another (E, h, f)."""
    return (
        Parameter("mlp.experts.gate_up_proj", (num, 2 * f, h)),
        Parameter("mlp.experts.down_proj", (num, h, f)),
    )


def _norms(h: int) -> tuple[Parameter, ...]:
    return (*norm("input_layernorm", h), *norm("post_attention_layernorm", h))


def _sparse_layers(c: Config) -> tuple[int, ...]:
    """0 for a layer with experts, 1 for a dense one (modeling_qwen3_moe.py ``Qwen3MoeDecoderLayer.__init__``)."""
    layers, step = c.num_layers(), c.count("decoder_sparse_step", 1)
    dense = c.layers("mlp_only_layers", layers)
    return tuple(int(layer in dense or (layer + 1) % step != 0) for layer in range(layers))


def _per_token(c: Config, num: int, default: int) -> int:
    """Experts that one token goes to; not more than there are.

    Raises:
        InputError: more.
    """
    found = c.count("num_experts_per_tok", default)
    if found > num:
        raise InputError(f"{c.where}: num_experts_per_tok: {found} is not allowed; there are {num} experts")
    return found

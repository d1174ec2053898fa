"""Llama and its kin: Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi-3, StableLM.

Names, shapes and order are those of transformers' models/*/modeling_*.py (5.17 to 5.23), the constructors of
``*Attention``, ``*MLP``, ``*DecoderLayer``, ``*Model`` and ``*ForCausalLM``.

Legend: h ``hidden_size``, f ``intermediate_size``, a heads of queries and k of keys and values, each of d elements.
"""

from __future__ import annotations

from dataclasses import replace

from dsplan.families.config import ACTIVATIONS, Config
from dsplan.families.decoder import (
    FUSED,
    GATED_FUSED,
    LAYER_NORM,
    PARALLEL,
    RMS_PLUS_ONE,
    SANDWICH,
    SEQUENTIAL,
    Decoder,
)
from dsplan.families.parameter import Parameter, linear, norm

_FULL, _SLIDING = "full_attention", "sliding_attention"


def llama(c: Config) -> Decoder:
    """Llama 1 to 3 (models/llama): RMSNorm, rotary positions, gated MLP, grouped-query heads."""
    h, heads = c.count("hidden_size"), c.num_heads()
    d = c.optional_count("head_dim") or c.divided(h, heads)
    bias = c.flag("attention_bias", False)
    return decoder(
        c,
        "LlamaForCausalLM",
        head_size=d,
        key_value_heads=c.key_value_heads(heads),
        positions=c.count("max_position_embeddings", 2048),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=c.flag("mlp_bias", False),
    )


def mistral(c: Config) -> Decoder:
    """Mistral 7B (models/mistral): Llama with a window."""
    heads = c.num_heads()
    d = c.optional_count("head_dim") or c.divided(c.count("hidden_size"), heads)
    found = decoder(
        c,
        "MistralForCausalLM",
        head_size=d,
        key_value_heads=c.key_value_heads(heads, 8),
        positions=c.count("max_position_embeddings", 131072),
    )
    window = c.optional_count("sliding_window") if "sliding_window" in c.keys else 4096
    return replace(found, windows=(window,) * found.num_layers)


def qwen2(c: Config) -> Decoder:
    """Qwen 1.5, 2 and 2.5 (models/qwen2): biases in q, k and v."""
    heads = c.num_heads()
    d = c.optional_count("head_dim") or c.divided(c.count("hidden_size"), heads)
    found = decoder(
        c,
        "Qwen2ForCausalLM",
        head_size=d,
        key_value_heads=c.key_value_heads(heads, 32),
        positions=c.count("max_position_embeddings", 32768),
        qkv_bias=True,
    )
    return replace(found, windows=_late_windows(c, found.num_layers))


def qwen3(c: Config) -> Decoder:
    """Qwen 3 (models/qwen3): RMSNorm over each head of q and k."""
    heads = c.num_heads()
    bias = c.flag("attention_bias", False)
    found = decoder(
        c,
        "Qwen3ForCausalLM",
        head_size=c.count("head_dim", 128),
        key_value_heads=c.key_value_heads(heads, 32),
        positions=c.count("max_position_embeddings", 32768),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )
    return replace(found, windows=_late_windows(c, found.num_layers))


def gemma(c: Config) -> Decoder:
    """Gemma (models/gemma): RMSNorm with 1 + weight, GeGLU, scaled embedding, tied head."""
    heads = c.num_heads()
    bias = c.flag("attention_bias", False)
    found = decoder(
        c,
        "GemmaForCausalLM",
        head_size=c.count("head_dim", 256),
        key_value_heads=c.key_value_heads(heads, 16),
        positions=c.count("max_position_embeddings", 8192),
        qkv_bias=bias,
        output_bias=bias,
        tied=True,
    )
    return replace(found, norm=RMS_PLUS_ONE, scaled_embedding=True, activation=_gemma_activation(c, "hidden_act"))


def gemma2(c: Config) -> Decoder:
    """Gemma 2 (models/gemma2): four norms a block, caps on scores and logits, every other layer with a window."""
    return _gemma23(c, "Gemma2ForCausalLM", window_every=2, vocab_size=None, caps=(50.0, 30.0))


def gemma3(c: Config) -> Decoder:
    """Gemma 3 (models/gemma3, ``Gemma3TextModel``): as Gemma 2, with norms of q and k, and five windows of six."""
    every = c.count("sliding_window_pattern", 6)
    return _gemma23(c, "Gemma3ForCausalLM", window_every=every, vocab_size=262208, caps=(None, None))


def _gemma23(
    c: Config, causal_lm: str, *, window_every: int, vocab_size: int | None, caps: tuple[float | None, float | None]
) -> Decoder:
    third = vocab_size is not None
    # The published configurations of Gemma 3 leave out what has transformers' default.
    heads = c.num_heads(8 if third else None)
    bias = c.flag("attention_bias", False)
    found = decoder(
        c,
        causal_lm,
        head_size=c.count("head_dim", 256),
        heads=heads,
        key_value_heads=c.key_value_heads(heads, 4),
        positions=c.count("max_position_embeddings", 131072 if third else 8192),
        vocab_size=vocab_size,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=third,
        tied=True,
        norms=("input", "post_attention", "pre_feedforward", "post_feedforward"),
    )
    layers = found.num_layers
    types = c.names("layer_types", layers, (_FULL, _SLIDING)) or tuple(
        _SLIDING if (layer + 1) % window_every else _FULL for layer in range(layers)
    )
    window = c.count("sliding_window", 4096)
    softcap = c.positive("attn_logit_softcapping", caps[0])
    return replace(
        found,
        norm=RMS_PLUS_ONE,
        residual=SANDWICH,
        scaled_embedding=True,
        activation=_gemma_activation(c, "hidden_activation"),
        windows=tuple(window if kind == _SLIDING else None for kind in types),
        softcap=softcap,
        head_softcap=c.positive("final_logit_softcapping", caps[1]),
        default_attention="eager" if causal_lm == "Gemma2ForCausalLM" else "sdpa",
    )


def phi3(c: Config) -> Decoder:
    """Phi-3 and Phi-3.5 (models/phi3): q, k and v in one product, gate and up in another."""
    h, heads, f = c.count("hidden_size"), c.num_heads(), c.count("intermediate_size")
    d = c.optional_count("head_dim") or c.divided(h, heads)
    k = c.key_value_heads(heads)
    block = (
        *linear("self_attn.o_proj", h, heads * d),
        *linear("self_attn.qkv_proj", (heads + 2 * k) * d, h),
        *linear("mlp.gate_up_proj", 2 * f, h),
        *linear("mlp.down_proj", h, f),
        *norm("input_layernorm", h),
        *norm("post_attention_layernorm", h),
    )
    found = decoder(
        c,
        "Phi3ForCausalLM",
        head_size=d,
        key_value_heads=k,
        positions=c.count("max_position_embeddings", 4096),
        block=block,
        rotary_size=c.rotary_size(d, "partial_rotary_factor", 1.0),
    )
    window = c.optional_count("sliding_window")
    return replace(
        found,
        qkv=FUSED,
        mlp=GATED_FUSED,
        dropout=c.probability("resid_pdrop"),
        windows=(window,) * found.num_layers,
    )


def stablelm(c: Config) -> Decoder:
    """StableLM (models/stablelm): LayerNorm with bias, a quarter of each head rotates."""
    h, heads, f = c.count("hidden_size"), c.num_heads(), c.count("intermediate_size")
    d = c.divided(h, heads)
    k = c.key_value_heads(heads, 32)
    bias = c.flag("use_qkv_bias", False)
    parallel = c.flag("use_parallel_residual", False)
    per_head: tuple[Parameter, ...] = ()
    if c.flag("qk_layernorm", False):
        per_head = tuple(
            Parameter(f"self_attn.{name}_layernorm.norms.{head}.weight", (d,))
            for name, count in (("q", heads), ("k", k))
            for head in range(count)
        )
    block = (
        *attention(h, heads, k, d, qkv_bias=bias),
        *per_head,
        *gated(h, f),
        *norm("input_layernorm", h, bias=True),
        *(() if parallel else norm("post_attention_layernorm", h, bias=True)),
    )
    found = decoder(
        c,
        "StableLmForCausalLM",
        head_size=d,
        key_value_heads=k,
        positions=c.count("max_position_embeddings", 4096),
        block=block,
        norm_bias=True,
        rotary_size=c.rotary_size(d, "partial_rotary_factor", 0.25),
    )
    return replace(
        found,
        norm=LAYER_NORM,
        qkv_bias=bias,
        qk_norm=bool(per_head),
        residual=PARALLEL if parallel else SEQUENTIAL,
        dropout=c.probability("hidden_dropout"),
    )


def decoder(
    c: Config,
    causal_lm: str,
    *,
    head_size: int,
    key_value_heads: int,
    positions: int,
    heads: int | None = None,
    vocab_size: int | None = None,
    block: tuple[Parameter, ...] | None = None,
    kinds: tuple[tuple[Parameter, ...], ...] | None = None,
    layers: tuple[int, ...] | None = None,
    norms: tuple[str, ...] = ("input", "post_attention"),
    norm_bias: bool = False,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    tied: bool = False,
    rotary_size: int | None = None,
) -> Decoder:
    """A decoder under ``model.``, ``model.layers.`` and ``lm_head``, with Llama's block unless another is given.

    ``tied`` is the default of ``tie_word_embeddings``.
    """
    h, num_layers = c.count("hidden_size"), c.num_layers()
    a = heads or c.num_heads()
    f = c.count("intermediate_size")
    v = c.count("vocab_size", vocab_size)
    if block is None:
        per_head = (*norm("self_attn.q_norm", head_size), *norm("self_attn.k_norm", head_size)) if qk_norm else ()
        block = (
            *attention(h, a, key_value_heads, head_size, qkv_bias=qkv_bias, output_bias=output_bias),
            *per_head,
            *gated(h, f, bias=mlp_bias),
            *(parameter for name in norms for parameter in norm(f"{name}_layernorm", h)),
        )
    is_tied = c.flag("tie_word_embeddings", tied)
    return Decoder(
        causal_lm=causal_lm,
        hidden_size=h,
        num_attention_heads=a,
        num_key_value_heads=key_value_heads,
        head_size=head_size,
        intermediate_size=f,
        vocab_size=v,
        max_position_embeddings=positions,
        before=(Parameter("model.embed_tokens.weight", (v, h)),),
        kinds=kinds or (block,),
        after=(*norm("model.norm", h, bias=norm_bias), *(() if is_tied else linear("lm_head", v, h))),
        layers=layers or (0,) * num_layers,
        prefix="model.layers.",
        tied="model.embed_tokens.weight" if is_tied else "",
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        activation=c.name("hidden_act", "silu", ACTIVATIONS),
        rotary_size=head_size if rotary_size is None else rotary_size,
        windows=(None,) * num_layers,
        attention_dropout=c.probability("attention_dropout"),
    )


def attention(
    h: int, heads: int, key_value_heads: int, d: int, *, qkv_bias: bool = False, output_bias: bool = False
) -> tuple[Parameter, ...]:
    """q (a·d, h), k and v (k·d, h), o (h, a·d)."""
    return (
        *linear("self_attn.q_proj", heads * d, h, bias=qkv_bias),
        *linear("self_attn.k_proj", key_value_heads * d, h, bias=qkv_bias),
        *linear("self_attn.v_proj", key_value_heads * d, h, bias=qkv_bias),
        *linear("self_attn.o_proj", h, heads * d, bias=output_bias),
    )


def gated(h: int, f: int, *, name: str = "mlp", bias: bool = False) -> tuple[Parameter, ...]:
    """gate and up (f, h), down (h, f)."""
    return (
        *linear(f"{name}.gate_proj", f, h, bias=bias),
        *linear(f"{name}.up_proj", f, h, bias=bias),
        *linear(f"{name}.down_proj", h, f, bias=bias),
    )


def window_in_use(c: Config) -> int | None:
    """Tokens that a layer with a window sees, of Qwen; None: no layer has one (configuration_qwen2.py)."""
    return c.count("sliding_window", 4096) if c.flag("use_sliding_window", False) else None


def _late_windows(c: Config, num_layers: int) -> tuple[int | None, ...]:
    """Windows of Qwen: from ``max_window_layers`` on, if there are any (configuration_qwen2.py ``__post_init__``)."""
    window = window_in_use(c)
    types = c.names("layer_types", num_layers, (_FULL, _SLIDING))
    if types is not None:
        return tuple(window if kind == _SLIDING else None for kind in types)
    first = c.amount("max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _gemma_activation(c: Config, key: str) -> str:
    """``gelu_pytorch_tanh``, also where an older file says gelu (configuration_gemma.py)."""
    found = c.name(key, "gelu_pytorch_tanh", ACTIVATIONS)
    return "gelu_pytorch_tanh" if found == "gelu" and key == "hidden_act" else found

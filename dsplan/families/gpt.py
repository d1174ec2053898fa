"""GPT-2, GPT-NeoX (Pythia), OPT, BLOOM and Falcon.

Names, shapes and order are those of transformers' models/{gpt2,gpt_neox,opt,bloom,falcon}/modeling_*.py
(5.17 to 5.23), the constructors of ``*Attention``, ``*MLP``, the block, the model and its head.

Legend: h width, f width of the MLP, a heads, V vocabulary, T positions.
"""

from __future__ import annotations

from dsplan.errors import InputError
from dsplan.families.config import ACTIVATIONS, MOST_HEADS, MOST_LAYERS, Config
from dsplan.families.decoder import (
    AFTER_NORM,
    FUSED,
    GROUPED,
    LAYER_NORM,
    PARALLEL,
    PLAIN,
    POST_NORM,
    SEPARATE,
    SEQUENTIAL,
    Decoder,
)
from dsplan.families.parameter import Parameter, conv1d, linear, norm


def gpt2(c: Config) -> Decoder:
    """GPT-2 (models/gpt2): fused c_attn in transformers' Conv1D, learned positions, tied head."""
    h, layers, heads = c.count("n_embd"), c.count("n_layer", most=MOST_LAYERS), c.count("n_head", most=MOST_HEADS)
    d = c.divided(h, heads)
    if c.flag("add_cross_attention", False):
        raise InputError(f"{c.where}: add_cross_attention: true is not planned; there is no encoder to attend to")
    f = c.count("n_inner", 4 * h)
    v, positions = c.count("vocab_size", 50257), c.count("n_positions", 1024)
    block = (
        *norm("ln_1", h, bias=True),
        *conv1d("attn.c_attn", 3 * h, h),
        *conv1d("attn.c_proj", h, h),
        *norm("ln_2", h, bias=True),
        *conv1d("mlp.c_fc", f, h),
        *conv1d("mlp.c_proj", h, f),
    )
    tied = c.flag("tie_word_embeddings", True)
    return Decoder(
        causal_lm="GPT2LMHeadModel",
        hidden_size=h,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_size=d,
        intermediate_size=f,
        vocab_size=v,
        max_position_embeddings=positions,
        before=(Parameter("transformer.wte.weight", (v, h)), Parameter("transformer.wpe.weight", (positions, h))),
        kinds=(block,),
        after=(*norm("transformer.ln_f", h, bias=True), *(() if tied else linear("lm_head", v, h))),
        layers=(0,) * layers,
        prefix="transformer.h.",
        tied="transformer.wte.weight" if tied else "",
        norm=LAYER_NORM,
        qkv=FUSED,
        qkv_bias=True,
        output_bias=True,
        mlp=PLAIN,
        mlp_bias=True,
        activation=c.name("activation_function", "gelu_new", ACTIVATIONS),
        transposed=True,
        upcasts_scores=c.flag("reorder_and_upcast_attn", False),
        windows=(None,) * layers,
        dropout=c.probability("resid_pdrop", 0.1),
        attention_dropout=c.probability("attn_pdrop", 0.1),
        embedding_dropout=c.probability("embd_pdrop", 0.1),
    )


def gpt_neox(c: Config) -> Decoder:
    """GPT-NeoX and Pythia (models/gpt_neox): parallel residual, a quarter of each head rotates, untied head."""
    h, layers, heads = c.count("hidden_size"), c.num_layers(), c.num_heads()
    d = c.divided(h, heads)
    f, v = c.count("intermediate_size"), c.count("vocab_size")
    bias = c.flag("attention_bias", True)
    block = (
        *norm("input_layernorm", h, bias=True),
        *norm("post_attention_layernorm", h, bias=True),
        *linear("attention.query_key_value", 3 * h, h, bias=bias),
        *linear("attention.dense", h, h, bias=bias),
        *linear("mlp.dense_h_to_4h", f, h, bias=True),
        *linear("mlp.dense_4h_to_h", h, f, bias=True),
    )
    tied = c.flag("tie_word_embeddings", False)
    return Decoder(
        causal_lm="GPTNeoXForCausalLM",
        hidden_size=h,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_size=d,
        intermediate_size=f,
        vocab_size=v,
        max_position_embeddings=c.count("max_position_embeddings", 2048),
        before=(Parameter("gpt_neox.embed_in.weight", (v, h)),),
        kinds=(block,),
        after=(*norm("gpt_neox.final_layer_norm", h, bias=True), *(() if tied else linear("lm_head", v, h))),
        layers=(0,) * layers,
        prefix="gpt_neox.layers.",
        tied="gpt_neox.embed_in.weight" if tied else "",
        norm=LAYER_NORM,
        qkv=FUSED,
        qkv_bias=bias,
        output_bias=bias,
        mlp=PLAIN,
        mlp_bias=True,
        residual=PARALLEL if c.flag("use_parallel_residual", True) else SEQUENTIAL,
        activation=c.name("hidden_act", "gelu", ACTIVATIONS),
        rotary_size=c.rotary_size(d, "rotary_pct", 0.25),
        windows=(None,) * layers,
        dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
        embedding_dropout=c.probability("hidden_dropout"),
    )


def opt(c: Config) -> Decoder:
    """OPT (models/opt): learned positions behind an offset of 2; torch has the last norm before the blocks."""
    h, layers, heads = c.count("hidden_size"), c.num_layers(), c.num_heads()
    d = c.divided(h, heads)
    f, v = c.count("ffn_dim"), c.count("vocab_size")
    positions = c.count("max_position_embeddings", 2048)
    embedded = c.count("word_embed_proj_dim", h)
    bias, affine = c.flag("enable_bias", True), c.flag("layer_norm_elementwise_affine", True)
    before = c.flag("do_layer_norm_before", True)
    normed = before and not c.flag("_remove_final_layer_norm", False)

    def layer_norm(name: str) -> tuple[Parameter, ...]:
        return norm(name, h, bias=True) if affine else ()

    decoder = "model.decoder"
    projections = (
        *linear(f"{decoder}.project_out", embedded, h),
        *linear(f"{decoder}.project_in", h, embedded),
    )
    block = (
        *(p for n in ("k_proj", "v_proj", "q_proj", "out_proj") for p in linear(f"self_attn.{n}", h, h, bias=bias)),
        *layer_norm("self_attn_layer_norm"),
        *linear("fc1", f, h, bias=bias),
        *linear("fc2", h, f, bias=bias),
        *layer_norm("final_layer_norm"),
    )
    tied = c.flag("tie_word_embeddings", True)
    return Decoder(
        causal_lm="OPTForCausalLM",
        hidden_size=h,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_size=d,
        intermediate_size=f,
        vocab_size=v,
        max_position_embeddings=positions,
        before=(
            Parameter(f"{decoder}.embed_tokens.weight", (v, embedded)),
            # OPTLearnedPositionalEmbedding keeps its first two rows for padding.
            Parameter(f"{decoder}.embed_positions.weight", (positions + 2, h)),
            *(projections if embedded != h else ()),
            *(layer_norm(f"{decoder}.final_layer_norm") if normed else ()),
        ),
        kinds=(block,),
        after=() if tied else linear("lm_head", v, embedded),
        layers=(0,) * layers,
        prefix=f"{decoder}.layers.",
        tied=f"{decoder}.embed_tokens.weight" if tied else "",
        norm=LAYER_NORM,
        qkv=SEPARATE,
        qkv_bias=bias,
        output_bias=bias,
        mlp=PLAIN,
        mlp_bias=bias,
        residual=SEQUENTIAL if before else POST_NORM,
        activation=c.name("activation_function", "relu", ACTIVATIONS),
        windows=(None,) * layers,
        dropout=c.probability("dropout", 0.1),
        attention_dropout=c.probability("attention_dropout"),
    )


def bloom(c: Config) -> Decoder:
    """BLOOM (models/bloom): ALiBi, a norm behind the embedding, tied head."""
    h = c.count("n_embed", c.count("hidden_size", 1) if "hidden_size" in c else None)
    layers, heads = c.count("n_layer", most=MOST_LAYERS), c.count("n_head", most=MOST_HEADS)
    d = c.divided(h, heads)
    v = c.count("vocab_size")
    block = (
        *norm("input_layernorm", h, bias=True),
        *linear("self_attention.query_key_value", 3 * h, h, bias=True),
        *linear("self_attention.dense", h, h, bias=True),
        *norm("post_attention_layernorm", h, bias=True),
        *linear("mlp.dense_h_to_4h", 4 * h, h, bias=True),
        *linear("mlp.dense_4h_to_h", h, 4 * h, bias=True),
    )
    tied = c.flag("tie_word_embeddings", True)
    return Decoder(
        causal_lm="BloomForCausalLM",
        hidden_size=h,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_size=d,
        intermediate_size=4 * h,
        vocab_size=v,
        max_position_embeddings=c.count("seq_length", 2048),
        before=(
            Parameter("transformer.word_embeddings.weight", (v, h)),
            *norm("transformer.word_embeddings_layernorm", h, bias=True),
        ),
        kinds=(block,),
        after=(*norm("transformer.ln_f", h, bias=True), *(() if tied else linear("lm_head", v, h))),
        layers=(0,) * layers,
        prefix="transformer.h.",
        tied="transformer.word_embeddings.weight" if tied else "",
        norm=LAYER_NORM,
        qkv=FUSED,
        qkv_bias=True,
        output_bias=True,
        mlp=PLAIN,
        mlp_bias=True,
        residual=AFTER_NORM if c.flag("apply_residual_connection_post_layernorm", False) else SEQUENTIAL,
        activation="bloom_gelu",
        windows=(None,) * layers,
        dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
        default_attention="eager",
        attentions=("eager",),
    )


def falcon(c: Config) -> Decoder:
    """Falcon (models/falcon): one key and value head or groups of them, parallel attention and MLP, tied head."""
    h = c.count("n_embed", c.count("hidden_size", 1) if "hidden_size" in c else None)
    layers, heads = c.num_layers(), c.num_heads()
    d = c.divided(h, heads)
    f, v = c.count("ffn_hidden_size", 4 * h), c.count("vocab_size")
    bias, new = c.flag("bias", False), c.flag("new_decoder_architecture", False)
    multi_query, parallel = c.flag("multi_query", True), c.flag("parallel_attn", True)
    groups = c.count("num_kv_heads", heads, most=MOST_HEADS)
    fused = (groups * 2 + heads) * d if new else h + 2 * d if multi_query else 3 * h
    num_norms = c.count("num_ln_in_parallel_attn", 2 if new else 1)
    if not parallel:
        norms: tuple[str, ...] = ("post_attention_layernorm", "input_layernorm")
    else:
        norms = ("ln_attn", "ln_mlp") if num_norms == 2 else ("input_layernorm",)
    block = (
        *linear("self_attention.query_key_value", fused, h, bias=bias),
        *linear("self_attention.dense", h, h, bias=bias),
        *linear("mlp.dense_h_to_4h", f, h, bias=bias),
        *linear("mlp.dense_4h_to_h", h, f, bias=bias),
        *(parameter for name in norms for parameter in norm(name, h, bias=True)),
    )
    tied = c.flag("tie_word_embeddings", True)
    return Decoder(
        causal_lm="FalconForCausalLM",
        hidden_size=h,
        num_attention_heads=heads,
        num_key_value_heads=groups if new else 1 if multi_query else heads,
        head_size=d,
        intermediate_size=f,
        vocab_size=v,
        max_position_embeddings=c.count("max_position_embeddings", 2048),
        before=(Parameter("transformer.word_embeddings.weight", (v, h)),),
        kinds=(block,),
        after=(*norm("transformer.ln_f", h, bias=True), *(() if tied else linear("lm_head", v, h))),
        layers=(0,) * layers,
        prefix="transformer.h.",
        tied="transformer.word_embeddings.weight" if tied else "",
        norm=LAYER_NORM,
        qkv=GROUPED if new else FUSED,
        qkv_bias=bias,
        output_bias=bias,
        mlp=PLAIN,
        mlp_bias=bias,
        residual=PARALLEL if parallel else SEQUENTIAL,
        activation=c.name("activation", "gelu", ACTIVATIONS),
        rotary_size=0 if c.flag("alibi", False) else d,
        windows=(None,) * layers,
        dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
    )

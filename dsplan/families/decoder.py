"""Decoder: what a family makes of a configuration: sizes, parameters in torch's order, and what a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dsplan.families.parameter import Parameter

RMS, RMS_PLUS_ONE, LAYER_NORM = "rms", "rms_plus_one", "layernorm"
GATED, GATED_FUSED, PLAIN = "gated", "gated_fused", "plain"
SEPARATE, FUSED, GROUPED = "separate", "fused", "grouped"
SEQUENTIAL, PARALLEL, SANDWICH, AFTER_NORM = "sequential", "parallel", "sandwich", "after norm"
#: The sum is what is normalised.
POST_NORM = "post norm"
#: Routers: softmax in fp32 over logits of the model's type, and DeepSeek V2's and V3's, which multiply in fp32.
SOFTMAX, WIDE_SOFTMAX, WIDE_SIGMOID = "softmax", "wide softmax", "wide sigmoid"


#: transformers' classes whose mixtures DeepSpeed fetches whole at stage 3 unless told otherwise
#: (deepspeed/runtime/zero/leaf_module_config.py DEFAULT_LEAF_MODULE_CLASSES).
FETCHED_WHOLE = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP: how many, how many a token goes to, and their widths.

    Attributes:
        module: name of the block's submodule that holds router and experts. All experts are one submodule with two
            tensors, so that ZeRO-3 fetches them together without ``deepspeed.utils.set_z3_leaf_modules``.
        shared_size: width of the expert that every token goes through; 0: none.
        wide_weights: whether the weights of a token's experts stay in fp32, and with them what they multiply.
        router: which of the forms above it has.
        normalised: whether the weights of a token's experts are divided by their sum.
        groups: of experts, of which a token goes to some only; 0: it goes to any.
    """

    num: int
    per_token: int
    size: int
    module: str
    shared_size: int = 0
    wide_weights: bool = False
    router: str = SOFTMAX
    normalised: bool = True
    groups: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention: keys and values are made of a narrow latent, and a part of each key rotates.

    Attributes:
        query_rank, rank: widths of the latents of queries (None: none) and of keys and values.
        plain, rotary: elements of a head of queries and keys that do not, and that do, rotate.
        value: elements of a head of values.
        interleaved: whether pairs of neighbours rotate (in real numbers), or complex numbers do (DeepSeek V2).
    """

    query_rank: int | None
    rank: int
    plain: int
    rotary: int
    value: int
    interleaved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder of transformers' as its sizes and tensors.

    Attributes:
        causal_lm: transformers' class, the source of everything here.
        before, kinds, after: parameters before the blocks, of each kind of block (names without prefix), and behind
            them, in the order of ``nn.Module.parameters()``.
        layers: the kind of each layer.
        prefix: of a block's parameters, before the number of its layer.
        tied: name of the parameter that the head shares; empty: the head has its own.
        norm, qkv, mlp, residual: which of the forms above a block has.
        rotary_size: elements of a head that rotate; 0: no rotary positions.
        windows: tokens that each layer's attention sees; None: all.
        softcap, head_softcap: tanh caps of the scores and of the logits; None: no cap.
        dropout, attention_dropout: of the residual stream, and of the probabilities.
        embedding_dropout: of what goes into the first block.
        experts, latent: a mixture of experts in place of the MLP, latent attention in place of the plain; or None.
        transposed: weights of linear layers are (n_in, n_out), as transformers' Conv1D has them.
        upcasts_scores: eager attention multiplies queries and keys in fp32 (GPT-2's ``reorder_and_upcast_attn``).
        beyond_formulas: keys of the configuration that ask for activations which only a dry run has.
        chosen_leaf: what a configuration makes a leaf (``leaf``) in place of DeepSpeed's default; None: that.
    """

    causal_lm: str
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    before: tuple[Parameter, ...]
    kinds: tuple[tuple[Parameter, ...], ...]
    after: tuple[Parameter, ...]
    layers: tuple[int, ...]
    prefix: str
    tied: str = ""
    norm: str = RMS
    qkv: str = SEPARATE
    qkv_bias: bool = False
    qk_norm: bool = False
    output_bias: bool = False
    mlp: str = GATED
    mlp_bias: bool = False
    residual: str = SEQUENTIAL
    activation: str = "silu"
    rotary_size: int = 0
    windows: tuple[int | None, ...] = ()
    softcap: float | None = None
    head_softcap: float | None = None
    scaled_embedding: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    experts: Experts | None = None
    latent: Latent | None = None
    transposed: bool = False
    upcasts_scores: bool = False
    beyond_formulas: tuple[str, ...] = ()
    chosen_leaf: str | None = None
    default_attention: str = "sdpa"
    attentions: tuple[str, ...] = field(default=("eager", "sdpa", "flash_attention_2"))

    @property
    def num_layers(self) -> int:
        """Blocks, of all kinds."""
        return len(self.layers)

    @property
    def alike(self) -> bool:
        """Whether every block has the same parameters."""
        return len(set(self.layers)) == 1

    @property
    def leaf(self) -> str:
        """The submodule of a block that ZeRO-3 fetches and releases whole, hooking nothing in it; empty: none."""
        if self.chosen_leaf is not None:
            return self.chosen_leaf
        return self.experts.module if self.experts is not None and self.causal_lm in FETCHED_WHOLE else ""

    @property
    def saves_weights(self) -> bool:
        """Whether the linear layers of its blocks save their weights transposed, at stage 3 too.

        ZeRO-3 puts its own function in the place of ``F.linear`` only; Falcon's layers multiply with ``@``.
        """
        return self.causal_lm == "FalconForCausalLM"

    @property
    def trained(self) -> bool:
        """Whether every parameter is trained."""
        return all(parameter.trained for group in (self.before, *self.kinds, self.after) for parameter in group)

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once, in the order of ``nn.Module.parameters()``."""
        yield from self.before
        for layer, kind in enumerate(self.layers):
            for parameter in self.kinds[kind]:
                yield Parameter(f"{self.prefix}{layer}.{parameter.name}", parameter.shape, parameter.trained)
        yield from self.after

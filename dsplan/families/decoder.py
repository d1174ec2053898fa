"""Decoder: what a family makes of a configuration: sizes, parameters in torch's order, and what a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dsplan.families.parameter import Parameter

RMS, RMS_PLUS_ONE, LAYER_NORM = "rms", "rms_plus_one", "layernorm"
GATED, GATED_FUSED, PLAIN = "gated", "gated_fused", "plain"
SEPARATE, FUSED = "separate", "fused"
SEQUENTIAL, PARALLEL, SANDWICH = "sequential", "parallel", "sandwich"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP: how many, how many a token goes to, and their widths.

    Attributes:
        module: name of the block's submodule that holds router and experts. All experts are one submodule with two
            tensors, so that ZeRO-3 fetches them together without ``deepspeed.utils.set_z3_leaf_modules``.
        shared_size: width of the expert that every token goes through; 0: none.
        wide_weights: whether the weights of a token's experts stay in fp32, and with them what they multiply.
    """

    num: int
    per_token: int
    size: int
    module: str
    shared_size: int = 0
    wide_weights: bool = False


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
        transposed: weights of linear layers are (n_in, n_out), as transformers' Conv1D has them.
    """

    causal_lm: str
    num_layers: int
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
    norm_bias: bool = False
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
    experts: Experts | None = None
    transposed: bool = False
    default_attention: str = "sdpa"
    attentions: tuple[str, ...] = field(default=("eager", "sdpa", "flash_attention_2"))

    @property
    def alike(self) -> bool:
        """Whether every block has the same parameters."""
        return len(set(self.layers)) == 1

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

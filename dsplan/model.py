"""ModelShape: a decoder as its tensors, with exact parameter counts.

Legend: L ``num_layers``, h ``hidden_size``, a ``num_attention_heads``, f ``intermediate_size``,
V ``vocab_size``, T ``max_position_embeddings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dsplan.errors import InputError, choice, require_positive

ATTENTIONS = ("eager", "sdpa")
ACTIVATIONS = ("gelu_new", "gelu")
LARGEST_DIMENSION = 10_000_000


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter tensor: its dotted name as torch spells it, and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The shape of a decoder-only transformer.

    The fields hold any decoder that the later formulas will need (grouped-query attention, gated or
    plain MLP, with or without biases, learned or rotary positions); this version's formulas cover
    ``model_type="mingpt"``: fused ``c_attn``, biases everywhere but in the head, LayerNorm, learned
    positions, a plain MLP of width 4h.

    Raises:
        InputError: a count below 1, heads that do not divide the width, or an unknown name.
    """

    name: str = "custom"
    model_type: str = "mingpt"
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    num_key_value_heads: int | None = None
    head_size: int | None = None
    intermediate_size: int | None = None
    gated_mlp: bool = False
    bias: bool = True
    normalization: str = "layernorm"
    positions: str = "learned"
    attention: str = "eager"
    activation: str = "gelu_new"
    dropout: float = 0.1
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in ("num_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
            require_positive(field, getattr(self, field))
            if getattr(self, field) > LARGEST_DIMENSION:
                raise InputError(f"{field}: {getattr(self, field)} is not allowed; at most {LARGEST_DIMENSION}")
        for field, allowed in (("attention", ATTENTIONS), ("activation", ACTIVATIONS)):
            # As it is spelled in the catalogue: the formulas compare with that spelling.
            object.__setattr__(self, field, choice(field, getattr(self, field), allowed))
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"num_attention_heads: {self.num_attention_heads} heads do not divide the width {self.hidden_size}; "
                f"nearest that do: {_nearest_divisors(self.hidden_size, self.num_attention_heads)}"
            )
        if isinstance(self.dropout, bool) or not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout: {self.dropout!r} is not allowed; it must be at least 0 and below 1")
        if self.model_type != "mingpt":
            raise InputError(f"model_type: {self.model_type!r} is not supported yet; allowed: mingpt")

    @property
    def head_width(self) -> int:
        """Elements of one attention head."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        """Elements of the hidden layer of the MLP: 4h unless given."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def has_mask_buffer(self) -> bool:
        """Eager attention keeps a causal mask of T x T in every block (minGPT ``register_buffer("bias")``)."""
        return self.attention == "eager"

    @cached_property
    def block_parameters(self) -> tuple[Parameter, ...]:
        """The parameters of one block in the order of ``nn.Module.parameters()``, names without prefix."""
        h, f = self.hidden_size, self.mlp_width
        return (
            Parameter("ln_1.weight", (h,)),
            Parameter("ln_1.bias", (h,)),
            Parameter("attn.c_attn.weight", (3 * h, h)),
            Parameter("attn.c_attn.bias", (3 * h,)),
            Parameter("attn.c_proj.weight", (h, h)),
            Parameter("attn.c_proj.bias", (h,)),
            Parameter("ln_2.weight", (h,)),
            Parameter("ln_2.bias", (h,)),
            Parameter("mlp.c_fc.weight", (f, h)),
            Parameter("mlp.c_fc.bias", (f,)),
            Parameter("mlp.c_proj.weight", (h, f)),
            Parameter("mlp.c_proj.bias", (h,)),
        )

    @cached_property
    def embedding_parameters(self) -> tuple[Parameter, ...]:
        """Token and position embeddings; they come first in ``nn.Module.parameters()``."""
        h = self.hidden_size
        return (
            Parameter("transformer.wte.weight", (self.vocab_size, h)),
            Parameter("transformer.wpe.weight", (self.max_position_embeddings, h)),
        )

    @cached_property
    def head_parameters(self) -> tuple[Parameter, ...]:
        """Final LayerNorm and, untied, the bias-free head; a tied head is counted once, as ``wte``."""
        h = self.hidden_size
        final_norm = (Parameter("transformer.ln_f.weight", (h,)), Parameter("transformer.ln_f.bias", (h,)))
        if self.tie_word_embeddings:
            return final_norm
        return (*final_norm, Parameter("lm_head.weight", (self.vocab_size, h)))

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter once, in the order of ``nn.Module.parameters()``."""
        blocks = tuple(
            Parameter(f"transformer.h.{layer}.{parameter.name}", parameter.shape)
            for layer in range(self.num_layers)
            for parameter in self.block_parameters
        )
        return (*self.embedding_parameters, *blocks, *self.head_parameters)

    @cached_property
    def num_parameters_per_block(self) -> int:
        """12h² + 13h for a plain MLP of width 4h."""
        return sum(parameter.numel for parameter in self.block_parameters)

    @cached_property
    def num_parameters(self) -> int:
        """Ψ: L(12h² + 13h) + 2Vh + Th + 2h untied; tied weights are counted once."""
        ends = (*self.embedding_parameters, *self.head_parameters)
        return self.num_layers * self.num_parameters_per_block + sum(parameter.numel for parameter in ends)

    @property
    def num_buffer_elements(self) -> int:
        """Elements of the causal masks; the buffers keep the dtype they are cast to with the model."""
        return self.num_layers * self.max_position_embeddings**2 if self.has_mask_buffer else 0

    def to_config(self) -> dict[str, Any]:
        """The model file that describes this shape (schemas/model.schema.json)."""
        return {
            "model_type": self.model_type,
            "n_layer": self.num_layers,
            "n_head": self.num_attention_heads,
            "n_embd": self.hidden_size,
            "vocab_size": self.vocab_size,
            "block_size": self.max_position_embeddings,
            "attention": self.attention,
            "activation": self.activation,
            "dropout": self.dropout,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _nearest_divisors(width: int, heads: int) -> str:
    divisors = [n for n in range(1, min(width, 4 * min(heads, 4096)) + 1) if width % n == 0]
    return " or ".join(str(n) for n in sorted(sorted(divisors, key=lambda n: abs(n - heads))[:2]))

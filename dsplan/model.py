"""ModelShape: a decoder as its tensors, with exact parameter counts.

Legend: L ``num_layers``, h ``hidden_size``, a ``num_attention_heads``, f ``intermediate_size``,
V ``vocab_size``, T ``max_position_embeddings``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dsplan.errors import InputError, choice, require_positive
from dsplan.families import LARGEST_DIMENSION, Decoder, Parameter, decoder_of, described

__all__ = ["ACTIVATIONS", "ATTENTIONS", "LARGEST_DIMENSION", "MINGPT", "ModelShape", "Parameter"]

#: The model that ships with dsplan; every other ``model_type`` is one of transformers' (:mod:`dsplan.families`).
MINGPT = "mingpt"
ATTENTIONS = ("eager", "sdpa")
ACTIVATIONS = ("gelu_new", "gelu")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The shape of a decoder-only transformer.

    ``model_type="mingpt"`` is made from the fields alone: fused ``c_attn``, biases everywhere but in the head,
    LayerNorm, learned positions, a plain MLP of width 4h. A shape of another type comes from
    :func:`dsplan.modelfile.shape_from_config` and has a ``decoder``, from which the fields are.

    Attributes:
        bias: whether any product adds a bias.
        decoder: the parameters of a decoder of transformers', and what its blocks run.
        config: its configuration as JSON, keys in order; what two shapes are compared by.

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
    decoder: Decoder | None = dataclasses.field(default=None, compare=False, repr=False)
    config: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.decoder is not None:
            self._require_the_decoders_fields(self.decoder)
            return
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
        if self.model_type != MINGPT:
            raise InputError(f"model_type: {self.model_type!r} is read from a configuration (config.json)")

    @cached_property
    def _hash(self) -> int:
        shape = (self.model_type, self.num_layers, self.hidden_size, self.num_attention_heads, self.vocab_size)
        return hash((*shape, self.attention, self.config))

    def __hash__(self) -> int:  # kept, for a shape is part of the key of most caches
        return self._hash

    @classmethod
    def from_module(cls, module: Any, *, name: str = "module", factory: str = "") -> ModelShape:
        """The shape of a torch module, on any device (meta will do): exact parameters, and which are trained.

        Args:
            module: an ``nn.Module``; tied parameters are counted once.
            name: what it is called.
            factory: ``package.file:function`` that makes it, from which a dry run builds it.

        Raises:
            InputError: it has no parameters.
        """
        config = described(module, factory)
        return cls.of_decoder(decoder_of(config, name), config, name=name, attention="sdpa")

    @classmethod
    def of_decoder(cls, decoder: Decoder, config: Mapping[str, Any], *, name: str, attention: str) -> ModelShape:
        """The shape of a decoder that was read from ``config``, with ``attention`` as it is computed."""
        return cls(
            name=name,
            model_type=str(config["model_type"]),
            num_layers=decoder.num_layers,
            hidden_size=decoder.hidden_size,
            num_attention_heads=decoder.num_attention_heads,
            vocab_size=decoder.vocab_size,
            max_position_embeddings=decoder.max_position_embeddings,
            num_key_value_heads=decoder.num_key_value_heads,
            head_size=decoder.head_size,
            intermediate_size=decoder.intermediate_size,
            gated_mlp=decoder.mlp != "plain",
            bias=decoder.qkv_bias or decoder.output_bias or decoder.mlp_bias,
            normalization=decoder.norm,
            positions="rotary" if decoder.rotary_size else "learned",
            attention=attention,
            activation=decoder.activation,
            dropout=decoder.attention_dropout,
            tie_word_embeddings=bool(decoder.tied),
            decoder=decoder,
            config=json.dumps({**config, "attn_implementation": attention}, sort_keys=True),
        )

    def _require_the_decoders_fields(self, decoder: Decoder) -> None:
        """Refuse a changed copy whose fields no longer say what the configuration does."""
        for name in ("num_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
            if getattr(self, name) != getattr(decoder, name):
                raise InputError(f"{name}: {getattr(self, name)} is not what the {self.model_type} configuration says")

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
        return self.decoder is None and self.attention == "eager"

    @property
    def block_prefix(self) -> str:
        """What comes before the number of a block in the names of its parameters and modules."""
        return "transformer.h." if self.decoder is None else self.decoder.prefix

    @property
    def tied_module(self) -> str:
        """The module whose weight a tied head shares; empty when the head has its own."""
        if self.decoder is not None:
            return self.decoder.tied.rpartition(".")[0]
        return "transformer.wte" if self.tie_word_embeddings else ""

    @property
    def has_like_blocks(self) -> bool:
        """Whether all blocks have the same parameters, which the formulas of the engines take for granted."""
        return self.decoder is None or self.decoder.alike

    @cached_property
    def block_parameters(self) -> tuple[Parameter, ...]:
        """The parameters of one block in the order of ``nn.Module.parameters()``, names without prefix.

        Where blocks differ (``has_like_blocks``) those of the last, which is a mixture of experts; of a module that
        nobody knows the blocks of, all.
        """
        if self.decoder is not None:
            return self.decoder.kinds[self.decoder.layers[-1]] or self.decoder.before
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
        """Token and position embeddings, and all else that comes before the blocks in ``nn.Module.parameters()``."""
        if self.decoder is not None:
            return self.decoder.before
        h = self.hidden_size
        return (
            Parameter("transformer.wte.weight", (self.vocab_size, h)),
            Parameter("transformer.wpe.weight", (self.max_position_embeddings, h)),
        )

    @cached_property
    def head_parameters(self) -> tuple[Parameter, ...]:
        """Final norm and, untied, the bias-free head; a tied head is counted once, as ``wte``."""
        if self.decoder is not None:
            return self.decoder.after
        h = self.hidden_size
        final_norm = (Parameter("transformer.ln_f.weight", (h,)), Parameter("transformer.ln_f.bias", (h,)))
        if self.tie_word_embeddings:
            return final_norm
        return (*final_norm, Parameter("lm_head.weight", (self.vocab_size, h)))

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter once, in the order of ``nn.Module.parameters()``."""
        if self.decoder is not None:
            return tuple(self.decoder.parameters())
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
        if self.decoder is not None:
            each = [sum(parameter.numel for parameter in kind) for kind in self.decoder.kinds]
            return sum(each[kind] for kind in self.decoder.layers) + sum(parameter.numel for parameter in ends)
        return self.num_layers * self.num_parameters_per_block + sum(parameter.numel for parameter in ends)

    @cached_property
    def num_trained_parameters(self) -> int:
        """Elements of the parameters that are trained: all but what adapters and frozen layers leave out."""
        if self.decoder is None or self.decoder.trained:
            return self.num_parameters
        return sum(parameter.numel for parameter in self.parameters if parameter.trained)

    @property
    def num_buffer_elements(self) -> int:
        """Elements of the causal masks; the buffers keep the dtype they are cast to with the model."""
        return self.num_layers * self.max_position_embeddings**2 if self.has_mask_buffer else 0

    def to_config(self) -> dict[str, Any]:
        """The model file that describes this shape (schemas/model.schema.json); a decoder's is its config.json."""
        if self.decoder is not None:
            document: dict[str, Any] = json.loads(self.config)
            return document
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

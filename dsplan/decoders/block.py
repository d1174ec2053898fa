"""Llama's block, which most families share: norm, attention, norm, MLP with residuals.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, d head size.
"""

from __future__ import annotations

from collections.abc import Callable

from dsplan import operators
from dsplan.attention import QKV
from dsplan.decoders import attention, mlp
from dsplan.decoders.attention import GroupedShape
from dsplan.decoders.classes import QWEN2_MOE
from dsplan.decoders.eager import Eager
from dsplan.decoders.experts import Mixture
from dsplan.decoders.parts import contiguous_gradient, part_of, size_of, split
from dsplan.decoders.pieces import BLOCK, STREAM, Piece
from dsplan.decoders.rotary import rotate, rotate_parts
from dsplan.decoders.unfused import sdpa
from dsplan.families import Experts, Parameter
from dsplan.families.decoder import FUSED, GATED, GATED_FUSED, SANDWICH
from dsplan.kernels import MATH
from dsplan.ledger import Term
from dsplan.operators import WORKING
from dsplan.tape import Tensor


class Block(Piece):
    """Norm, attention, norm, MLP with residuals, under activation checkpointing or not."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of this kind of block, by their names within it."""
        return self.decoder.kinds[self.kind.parameters]

    def forward(self, x: Tensor) -> Tensor:
        """The stream (b, s, h) through one block, run again in the backward pass where it is checkpointed."""
        kind = self.workload.activation_checkpointing

        def run(y: Tensor) -> Tensor:
            if kind == "none":
                return self._block(y)
            return self.tape.checkpoint(self._block, y, stops_early=kind == "torch")

        def block(y: Tensor) -> Tensor:  # a checkpoint is inside the module (modeling_layers.py)
            return self.tape.module(BLOCK, run, y)

        if not self.kind.needs_gradient:
            self._constants[id(x)] = x
            if not any(self.trains.values()):
                out = self.constant(lambda: block(x))
                self.tape.drop(x)
                return out

        out = block(x)
        self.tape.drop(x)
        return out

    def _block(self, x: Tensor) -> Tensor:
        """The block, until whose end a name has the probabilities of elementary attention."""
        self.probabilities.clear()
        out = self.block(x)
        self.tape.drop(*self.probabilities)
        return out

    def block(self, x: Tensor) -> Tensor:
        """The block without its checkpoint, (b, s, h) to (b, s, h) (modeling_llama.py LlamaDecoderLayer.forward)."""
        t = self.tape
        sandwich = self.decoder.residual == SANDWICH
        middle = self.branch(x, "input_layernorm", "self_attn", "post_attention_layernorm" if sandwich else "")
        before = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        out = self.branch(middle, before, "mlp", "post_feedforward_layernorm" if sandwich else "")
        t.drop(middle)
        return out

    def branch(self, x: Tensor, before: str, name: str, after: str) -> Tensor:
        """``x + after(module(before(x)))``: one half of a block."""
        if not self.needs_gradient(x) and not any(
            trained for each, trained in self.trains.items() if each.startswith((f"{name}.", f"{before}."))
        ):
            return self.constant(lambda: self.branched(x, before, name, after))
        return self.branched(x, before, name, after)

    def branched(self, x: Tensor, before: str, name: str, after: str) -> Tensor:
        """What :meth:`branch` runs, whether a gradient is asked for or not."""
        t = self.tape
        normalised = self.norm(x, before)
        result = t.module(name, self.attention if name == "self_attn" else self.mlp, normalised)
        t.drop(normalised)
        if after:
            scaled = self.norm(result, after, WORKING)
            t.drop(result)
            result = scaled
        out = operators.add(t, x, result, STREAM)
        t.drop(result)
        return out

    # Attention.

    def attention(self, x: Tensor) -> Tensor:
        """The normalised stream (b, s, h) to what is added to it (modeling_llama.py LlamaAttention.forward)."""
        t, d = self.tape, self.decoder
        q, k, v = self.fused_projections(x) if d.qkv == FUSED else self.projections(x)
        joins = d.qkv == FUSED
        if joins:
            rotated_q, rotated_k = rotate_parts(t, q, k, (d.rotary_size, d.head_size), QKV)
        else:
            rotated_q, rotated_k = (self.rotated_whole(each) for each in (q, k))
        t.drop(q, k)
        shape = self.grouped_shape()
        if self.eager:
            core = Eager(softcap=d.softcap is not None, by_head=joins, held=self.probabilities)
            context = core(t, rotated_q, rotated_k, v, shape)
        elif self.has_window:
            context = attention.windowed(t, rotated_q, rotated_k, v, shape)
        else:
            context = sdpa(t, rotated_q, rotated_k, v, shape, by_head=joins)
        width = d.num_attention_heads * d.head_size
        out = self.linear(context, "self_attn.o_proj", self.h, WORKING, bias=d.output_bias, n_in=width)
        t.drop(context, rotated_q, rotated_k, v)
        return out

    def rotated_whole(self, x: Tensor) -> Tensor:
        """Queries or keys, all of whose elements rotate."""
        if self.needs_gradient(x):
            return rotate(self.tape, x, QKV)
        return self.constant(lambda: rotate(self.tape, x, QKV))

    @property
    def is_elementary(self) -> bool:
        """Whether attention is of elementary operators, which return the gradients of values head by head."""
        return self.eager or (not self.has_window and attention.kernel_of(self.tape, self.grouped_shape()) == MATH)

    def grouped_shape(self) -> GroupedShape:
        """Sizes of the attention core."""
        d = self.decoder
        return GroupedShape(
            batch=self.b,
            length=self.s,
            heads=d.num_attention_heads,
            key_value_heads=d.num_key_value_heads,
            head_size=d.head_size,
            element_bytes=self.e,
            is_half=self.workload.precision == "fp16",
            dropout=d.attention_dropout,
        )

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values from a product each; with norms of their heads where the family has them."""
        d = self.decoder
        q = self.projection(x, "q", d.num_attention_heads)
        k = self.projection(x, "k", d.num_key_value_heads)
        v = self.linear(x, "self_attn.v_proj", d.num_key_value_heads * d.head_size, QKV, bias=d.qkv_bias)
        return q, k, self.by_head(v, d.num_key_value_heads) if self.is_elementary else v

    def by_head(self, flat: Tensor, heads: int) -> Tensor:
        """A projection as ``heads``, in the place of ``flat``: of several, what comes back has each by itself and is
        copied into the order of the projection.
        """
        t = self.tape
        if not self.needs_gradient(flat):
            parted = self.constant(lambda: t.view(flat.storage))
        elif heads == 1:
            parted = t.node(t.view(flat.storage), lambda gradient: t.give(flat, gradient))
        else:
            parted = contiguous_gradient(t, flat)
        t.drop(flat)
        return parted

    def projection(self, x: Tensor, name: str, heads: int) -> Tensor:
        """Queries or keys of ``heads`` heads, e·b·s·heads·d, with the norm of each head where the family has one."""
        t, d = self.tape, self.decoder
        flat = self.linear(x, f"self_attn.{name}_proj", heads * d.head_size, QKV, bias=d.qkv_bias)
        by_head = self.by_head(flat, heads)
        if not d.qk_norm:
            return by_head
        normalised = self.norm(by_head, f"self_attn.{name}_norm", QKV, heads=heads)
        t.drop(by_head)
        return normalised

    def fused_projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phi-3: slices of one product; each slice's gradient comes back in a tensor of the whole (slice_backward)."""
        t, d = self.tape, self.decoder
        widths = (d.num_attention_heads, d.num_key_value_heads, d.num_key_value_heads)
        whole = self.linear(x, "self_attn.qkv_proj", sum(widths) * d.head_size, QKV, bias=d.qkv_bias)
        q, k, v = (part_of(t, whole, self.e * self.tokens * heads * d.head_size) for heads in widths)
        t.drop(whole)
        by_head = contiguous_gradient(t, q), contiguous_gradient(t, k)
        t.drop(q, k)
        return *by_head, v

    # The MLP.

    def mlp(self, x: Tensor) -> Tensor:
        """The normalised stream (b, s, h) to what is added to it: a gated MLP, or a mixture of experts."""
        d = self.decoder
        if d.experts is not None and f"{d.experts.module}.gate.weight" in self.trains:
            return self.mixture(x, d.experts)
        if d.mlp == GATED_FUSED:
            return self.fused_mlp(x)
        assert d.mlp == GATED
        return self.gated_mlp(x, "mlp", d.intermediate_size)

    def plain_mlp(
        self,
        x: Tensor,
        names: tuple[str, str, str],
        *,
        bias: bool,
        linear: Callable[..., Tensor] | None = None,
        hidden: Term | None = None,
        owned: bool = False,
    ) -> Tensor:
        """``down(act(up(x)))``.

        Args:
            names: of the modules ``up``, ``act`` and ``down``.
            linear: how both products are made; None: :meth:`linear`.
            hidden: what the first product counts as, where the activation saves its result and not this.
            owned: the first product takes the name of ``x``.
        """
        t, f = self.tape, self.decoder.intermediate_size
        up, act, down = names
        multiply = linear or self.linear
        wide = multiply(x, up, f, hidden or mlp.GATED, bias=bias)
        if owned:
            t.drop(x)
        active = t.module(act, self.activate, wide)
        t.drop(wide)
        out = multiply(active, down, self.h, WORKING, bias=bias, n_in=f)
        t.drop(active)
        return out

    def dropout(self, x: Tensor, name: str) -> Tensor:
        """Dropout of the residual stream, as a module."""
        t, numel, p = self.tape, self.tokens * self.h, self.decoder.dropout
        return t.module(name, lambda y: operators.dropout(t, y, numel, self.e, p, operators.RESIDUAL_MASK), x)

    def gated_mlp(self, x: Tensor, name: str, f: int, *, flat: bool = False) -> Tensor:
        """``down(act(gate(x)) · up(x))`` of width ``f``; ``flat``: of tokens in one dimension."""
        t, bias = self.tape, self.decoder.mlp_bias
        linear = self.flat_linear if flat else self.linear
        gate = linear(x, f"{name}.gate_proj", f, mlp.GATED, bias=bias)
        active = t.module(f"{name}.act_fn", self.activate, gate)
        t.drop(gate)
        up = linear(x, f"{name}.up_proj", f, mlp.GATED, bias=bias)
        product = mlp.multiply(t, active, up, mlp.GATED)
        t.drop(active, up)
        out = linear(product, f"{name}.down_proj", self.h, WORKING, bias=bias, n_in=f)
        t.drop(product)
        return out

    def mixture(self, x: Tensor, experts: Experts) -> Tensor:
        """Routed experts, and where the family has them the experts that every token goes through."""
        t, held = self.tape, list[Tensor]()
        trained = self.trains[f"{experts.module}.gate.weight"]
        mixture = Mixture(t, experts, tokens=self.tokens, width=self.h, element_bytes=self.e, trained=trained)
        if not experts.shared_size:
            return mixture.run(x)
        if self.decoder.causal_lm == QWEN2_MOE:
            return self.gated_mixture(x, experts, mixture)
        routed = mixture.routed(x, held)
        shared = t.module(
            "mlp.shared_experts", lambda y: self.gated_mlp(y, "mlp.shared_experts", experts.shared_size), x
        )
        out = operators.add(t, routed, shared, WORKING)
        t.drop(shared, routed, *held)
        return out

    def gated_mixture(self, x: Tensor, experts: Experts, mixture: Mixture) -> Tensor:
        """Qwen 2 MoE: the shared expert behind a gate of its own (modeling_qwen2_moe.py Qwen2MoeSparseMoeBlock)."""
        t, held, name = self.tape, list[Tensor](), "mlp.shared_expert"
        shared = t.module(name, lambda y: self.gated_mlp(y, name, experts.shared_size, flat=True), x)
        routed = mixture.routed(x, held)
        plain = self.flat_linear(x, f"{name}_gate", 1, WORKING, bias=False)
        gate = mlp.relu(t, plain, WORKING)  # sigmoid saves its result, as relu does
        t.drop(plain)
        scaled = mlp.scaled_by_rows(t, gate, shared, WORKING)
        t.drop(shared)  # the product has its name from here on
        out = operators.add(t, routed, scaled, WORKING)
        t.drop(routed, scaled, gate, *held)
        return out

    def fused_mlp(self, x: Tensor) -> Tensor:
        """Phi-3: gate and up are halves of one product (modeling_phi3.py Phi3MLP.forward)."""
        t, f = self.tape, self.decoder.intermediate_size
        whole = self.linear(x, "mlp.gate_up_proj", 2 * f, mlp.GATED, bias=False)
        gate, up = split(t, whole, [size_of(whole) // 2] * 2)
        active = mlp.activation_of_part(t, gate, mlp.GATED)
        product = mlp.multiply(t, up, active, mlp.GATED)
        t.drop(active)
        out = self.linear(product, "mlp.down_proj", self.h, WORKING, bias=False, n_in=f)
        t.drop(product, gate, up, whole)
        return out

    def activate(self, x: Tensor) -> Tensor:
        """The activation between an MLP's products; the exact gelu and silu are one kernel, as relu is."""
        name = self.decoder.activation
        if name == "gelu_new":
            return operators.gelu_new(self.tape, x, mlp.GATED)
        return (mlp.relu if name == "relu" else operators.activation)(self.tape, x, mlp.GATED)

"""Falcon as transformers runs it (models/falcon/modeling_falcon.py).

Its linear layers multiply with ``@`` and not through ``F.linear``, and its mask is always given. Falcon 40B and 180B
copy keys and values for every head, and the attention kernel is the memory-efficient one. Falcon 7B has a single head
of keys and values, which no kernel shares unless it is told to (``enable_gqa``). Falcon RW has ALiBi in its mask.

Legend: e bytes of an element, b micro batch, s sequence, h width, a heads, k groups of keys and values, d head size.
"""

from __future__ import annotations

from dataclasses import replace

from dsplan import operators
from dsplan.attention import CONTEXT, QKV
from dsplan.decoders import attention
from dsplan.decoders.block import Block
from dsplan.decoders.eager import Eager
from dsplan.decoders.masks import has_alibi
from dsplan.decoders.parts import copied, expanded, part_of, size_of, viewed
from dsplan.decoders.pieces import STREAM
from dsplan.decoders.rotary import rotate
from dsplan.decoders.unfused import Unfused
from dsplan.families.decoder import GROUPED, SEQUENTIAL
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor


class FalconBlock(Block):
    """Attention and MLP beside each other, behind a norm each or one for both; or one after the other."""

    def block(self, x: Tensor) -> Tensor:
        """modeling_falcon.py FalconDecoderLayer.forward with parallel_attn."""
        if self.decoder.residual == SEQUENTIAL:
            return self.in_sequence(x)
        t, names = self.tape, [each.name for each in self.decoder.kinds[0]]
        first = self.norm(x, "ln_attn" if "ln_attn.weight" in names else "input_layernorm")
        second = self.norm(x, "ln_mlp") if "ln_mlp.weight" in names else first
        attended = t.module("self_attention", self.attention, first)
        result = t.module("mlp", self.mlp, second)
        both = _added_in_place(t, result, attended)
        out = operators.add(t, both, x, STREAM)
        t.drop(attended, result, both, first, second)
        return out

    def in_sequence(self, x: Tensor) -> Tensor:
        """The same without parallel_attn."""
        t, numel, p = self.tape, self.tokens * self.h, self.decoder.attention_dropout
        first = self.norm(x, "input_layernorm")
        attended = t.module("self_attention", self.attention, first)
        dropped = operators.dropout(t, attended, numel, self.e, p, operators.RESIDUAL_MASK)
        middle = operators.add(t, dropped, x, STREAM)
        t.drop(dropped)
        second = self.norm(middle, "post_attention_layernorm")
        result = t.module("mlp", self.mlp, second)
        out = operators.add(t, result, middle, STREAM)
        t.drop(result, attended, middle, first, second)
        return out

    def attention(self, x: Tensor) -> Tensor:
        """modeling_falcon.py FalconAttention.forward."""
        t, d = self.tape, self.decoder
        heads, groups = d.num_attention_heads, d.num_key_value_heads
        element = self.e * self.tokens * d.head_size
        width, bias = (heads + 2 * groups) * d.head_size, d.mlp_bias
        qkv = self.multiplied(x, "self_attention.query_key_value", width, QKV, bias=bias)
        q: Tensor = part_of(t, qkv, element * heads)
        pick = part_of if d.qkv != GROUPED and groups == heads else _picked
        k, v = list[Tensor](pick(t, qkv, element * groups) for _ in range(2))
        if d.qkv == GROUPED:
            picked = k, v
            q = copied(t, q, QKV)
            k, v = (copied(t, expanded(t, each, element * heads), QKV) for each in picked)
            t.drop(*picked)
        if d.rotary_size:
            plain = q, k
            q, k = rotate(t, q, QKV), rotate(t, k, QKV)
            t.drop(*plain)
        context = self.core(q, k, v)
        out = self.multiplied(context, "self_attention.dense", self.h, WORKING, bias=bias)
        t.drop(context, qkv, q, k, v)
        return out

    def core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """With keys and values of every head, or of the single one that all share, for which torch has no kernel."""
        t, shape = self.tape, replace(self.grouped_shape(), is_masked=True)
        if self.decoder.qkv == GROUPED:
            shape = replace(shape, key_value_heads=shape.heads)
        if has_alibi(self.decoder):
            return attention.fused(t, q, k, v, replace(shape, mask_heads=shape.heads))
        shape = replace(shape, dropout=0.0)
        if self.eager:
            core = Eager(through_fp32=False, expands=True, in_place=True, held=self.probabilities)
            return core(t, q, k, v, shape)
        if not shape.grouped:
            return attention.fused(t, q, k, v, shape)
        return copied(t, Unfused(t, shape, repeats=False)(q, k, v), CONTEXT)

    def mlp(self, x: Tensor) -> Tensor:
        """modeling_falcon.py FalconMLP.forward."""
        names = "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h"
        return self.plain_mlp(x, names, bias=self.decoder.mlp_bias, linear=self.multiplied)

    def multiplied(
        self, x: Tensor, name: str, n_out: int, term: Term, *, bias: bool, n_in: int | None = None
    ) -> Tensor:
        """FalconLinear, ``input @ weight.T + bias``: at stage 3 too the gradient of its input is a view."""
        t = self.tape
        if not self.needs_gradient(x):
            return self.linear(x, name, n_out, term, bias=False, n_in=n_in)

        def biased(product: Tensor) -> Tensor:
            out = t.tensor(self.e * self.tokens * n_out, term)

            def backward(gradient: Storage) -> None:
                operators.bias_gradient(t, self.tokens, n_out, self.e)
                t.parameter_gradient(f"{name}.bias")
                t.give(product, gradient)

            t.node(out, backward)
            t.drop(product)
            return out

        whole = viewed(t, x)
        then = biased if bias else None
        out = self.linear(whole, name, n_out, term, bias=False, n_in=n_in, then=then)
        t.drop(whole)
        return out


def _added_in_place(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """``x += y``: the storage of ``x``."""
    out = t.view(x.storage)

    def backward(gradient: Storage) -> None:
        t.give(x, t.hold(gradient))
        t.give(y, gradient)

    return t.node(out, backward)


def _picked(t: Tape, whole: Tensor, size: int) -> Tensor:
    """``whole[:, :, :, [i]]``: a copy, whose gradient is put into zeros of the whole, out of place (index_backward)."""
    out = t.tensor(size, WORKING)

    def backward(gradient: Storage) -> None:
        zeros, found = t.allocate(size_of(whole), BACKWARD), t.allocate(size_of(whole), BACKWARD)
        t.release(zeros)
        t.release(gradient)
        t.give(whole, found)

    return t.node(out, backward)

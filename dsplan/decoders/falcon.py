"""Falcon's newer architecture as transformers runs it (models/falcon/modeling_falcon.py): Falcon 40B and 180B.

Its linear layers multiply with ``@`` and not through ``F.linear``; keys and values are copied for every head; and its
mask is always given, so that the attention kernel is the memory-efficient one.

Legend: e bytes of an element, b micro batch, s sequence, h width, a heads, k groups of keys and values, d head size.
"""

from __future__ import annotations

from dataclasses import replace

from dsplan import operators
from dsplan.attention import QKV
from dsplan.decoders import attention, mlp
from dsplan.decoders.block import Block
from dsplan.decoders.pieces import STREAM
from dsplan.decoders.rotary import Part, expanded, part_of, rotate, size_of
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor


class FalconBlock(Block):
    """Attention and MLP beside each other, behind a norm each or one for both."""

    def block(self, x: Tensor) -> Tensor:
        t, names = self.tape, [each.name for each in self.decoder.kinds[0]]
        first = self.norm(x, "ln_attn" if "ln_attn.weight" in names else "input_layernorm")
        second = self.norm(x, "ln_mlp") if "ln_mlp.weight" in names else first
        attended = t.module("self_attention", self.attention, first)
        result = t.module("mlp", self.mlp, second)
        both = _added_in_place(t, result, attended)
        out = operators.add(t, both, x, STREAM)
        t.drop(attended, result, both, first, second)
        return out

    def attention(self, x: Tensor) -> Tensor:
        t, d = self.tape, self.decoder
        heads, groups = d.num_attention_heads, d.num_key_value_heads
        element = self.e * self.tokens * d.head_size
        qkv = self.multiplied(x, "self_attention.query_key_value", (heads + 2 * groups) * d.head_size, QKV)
        queries = part_of(t, qkv, element * heads)
        picked = [_picked(t, qkv, element * groups) for _ in range(2)]
        q = _copied(t, queries, element * heads)
        k, v = (_copied(t, expanded(t, each, element * heads), element * heads) for each in picked)
        t.drop(queries, *picked)
        rotated_q, rotated_k = rotate(t, q, QKV), rotate(t, k, QKV)
        t.drop(q, k)
        shape = replace(self.grouped_shape(), key_value_heads=heads, is_masked=True)
        context = attention.fused(t, rotated_q, rotated_k, v, shape)
        t.drop(rotated_q, rotated_k, v)
        out = self.multiplied(context, "self_attention.dense", self.h, WORKING)
        t.drop(context, qkv)
        return out

    def mlp(self, x: Tensor) -> Tensor:
        t, f = self.tape, self.decoder.intermediate_size
        hidden = self.multiplied(x, "mlp.dense_h_to_4h", f, mlp.GATED)
        active = t.module("mlp.act", self.activate, hidden)
        t.drop(hidden)
        out = self.multiplied(active, "mlp.dense_4h_to_h", self.h, WORKING, n_in=f)
        t.drop(active)
        return out

    def multiplied(self, x: Tensor, name: str, n_out: int, term: Term, *, n_in: int | None = None) -> Tensor:
        """FalconLinear, ``input @ weight.T``: at stage 3 too the gradient of its input is a view."""
        t = self.tape
        viewed = _viewed(t, x)
        out = self.linear(viewed, name, n_out, term, bias=False, n_in=n_in)
        t.drop(viewed)
        return out


def _viewed(t: Tape, x: Tensor) -> Tensor:
    def backward(gradient: Storage) -> None:
        gradient.is_view = True
        t.give(x, gradient)

    return t.node(t.view(x.storage), backward)


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


def _copied(t: Tape, part: Part, size: int) -> Tensor:
    """``flatten`` of heads that do not lie beside each other; its backward is a view."""
    out = t.tensor(size, QKV)
    t.node(out, lambda gradient: t.give(part, gradient))
    t.drop(part)
    return out

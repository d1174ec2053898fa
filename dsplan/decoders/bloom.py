"""BLOOM as transformers runs it (models/bloom/modeling_bloom.py): ALiBi, elementary attention, a norm of the embedding.

Legend: e bytes of an element, b micro batch, s sequence, h width, a heads.
"""

from __future__ import annotations

from dsplan import operators
from dsplan.attention import CONTEXT, QKV, SCORE_MASK
from dsplan.decoders import mlp
from dsplan.decoders.attention import SCORES, GroupedShape
from dsplan.decoders.block import Block
from dsplan.decoders.eager import softmax_through_fp32
from dsplan.decoders.ends import Embedding
from dsplan.decoders.parts import copied, part_of
from dsplan.decoders.pieces import STREAM
from dsplan.families.decoder import AFTER_NORM
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import LEAVE, Storage, Tape, Tensor


class BloomBlock(Block):
    """LayerNorm, attention with its residual, LayerNorm, MLP with its residual; dropout of neither."""

    def block(self, x: Tensor) -> Tensor:
        """modeling_bloom.py BloomBlock.forward."""
        t = self.tape
        probabilities: list[Tensor] = []  # a part of the block's result
        normalised = self.norm(x, "input_layernorm")
        behind = self.decoder.residual == AFTER_NORM
        first = normalised if behind else x
        middle = t.module("self_attention", lambda y: self.attended(y, first, probabilities), normalised)
        again = self.norm(middle, "post_attention_layernorm")
        t.drop(normalised)
        second = again if behind else middle
        out = t.module("mlp", lambda y: self.expanded(y, second), again)
        t.drop(again, middle, *probabilities)
        return out

    def attended(self, x: Tensor, residual: Tensor, probabilities: list[Tensor]) -> Tensor:
        """modeling_bloom.py BloomAttention.forward, which adds its ``residual``; probabilities join the list."""
        t = self.tape
        qkv = self.linear(x, "self_attention.query_key_value", 3 * self.h, QKV, bias=True)
        held: list[Tensor] = []  # by their names, until attention returns
        context = scored(t, qkv, self.grouped_shape(), held, probabilities)
        projected = self.linear(context, "self_attention.dense", self.h, WORKING, bias=True)
        t.drop(context)
        out = operators.add(t, residual, projected, STREAM)
        t.drop(projected, qkv, *held)
        return out

    def expanded(self, x: Tensor, residual: Tensor) -> Tensor:
        """modeling_bloom.py BloomMLP.forward, which adds its ``residual``."""
        t = self.tape
        projected = self.plain_mlp(x, ("mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"), bias=True)
        out = operators.add(t, residual, projected, STREAM)
        t.drop(projected)
        return out

    def activate(self, x: Tensor) -> Tensor:
        """BloomGelu."""
        return gelu(self.tape, x)


class BloomEmbedding(Embedding):
    """Token embedding and its norm; ALiBi and the mask, which all blocks share."""

    def forward(self, _: Tensor) -> Tensor:
        """modeling_bloom.py BloomModel.forward, up to its first block."""
        t = self.tape
        shared: list[Tensor] = []
        name = self.enter()
        embedded = self.embedded(name, shared)
        t.mark(LEAVE, name)
        out = self.norm(embedded, "transformer.word_embeddings_layernorm", STREAM)
        t.drop(embedded)
        shared += self.kept_masks()
        self.hold_named()
        return out


def scored(t: Tape, qkv: Tensor, shape: GroupedShape, held: list[Tensor], probabilities_of: list[Tensor]) -> Tensor:
    """``softmax(baddbmm(alibi, q, k) + mask) v``: q, k and v are copied head by head (BloomAttention.forward).

    What its names hold joins ``held``, the probabilities ``probabilities_of``.
    """
    parts = [part_of(t, qkv, shape.queries) for _ in range(3)]
    q, k, v = (copied(t, part, QKV) for part in parts)
    raw, masked = _biased_scores(t, q, k, shape)
    probabilities = softmax_through_fp32(t, masked, shape)
    dropped = t.module(
        "self_attention.attention_dropout",
        lambda x: operators.dropout(
            t, x, shape.num_scores, shape.element_bytes, shape.dropout, SCORE_MASK, term=SCORES
        ),
        probabilities,
    )
    kept = t.save(dropped), t.save(v)
    heads_first = t.tensor(shape.queries, WORKING)

    def backward(gradient: Storage) -> None:
        d_v = t.allocate(shape.queries, BACKWARD)
        d_dropped = t.allocate(shape.scores, BACKWARD)
        t.release(gradient)
        t.forget(*kept)
        t.give(v, d_v)
        t.give(dropped, d_dropped)

    t.node(heads_first, backward)
    context = t.tensor(shape.queries, CONTEXT)

    def backward_merge(gradient: Storage) -> None:
        by_head = t.allocate(shape.queries, BACKWARD)
        t.release(gradient)
        t.give(heads_first, by_head)

    t.node(context, backward_merge)
    t.drop(heads_first)
    held += [raw, masked, q, k, v]
    probabilities_of += [probabilities, dropped]
    return context


def _biased_scores(t: Tape, q: Tensor, k: Tensor, shape: GroupedShape) -> tuple[Tensor, Tensor]:
    """``alibi.baddbmm(q, k)``, and that with the mask added; of the gradients of q and k each is scaled."""
    kept = t.save(q), t.save(k)
    raw = t.tensor(shape.scores, WORKING)

    def backward(gradient: Storage) -> None:
        found = []
        for _ in range(2):
            plain = t.allocate(shape.queries, BACKWARD)
            found.append(t.allocate(shape.queries, BACKWARD))
            t.release(plain)
        t.release(gradient)
        t.forget(*kept)
        t.give(q, found[0])
        t.give(k, found[1])

    t.node(raw, backward)
    masked = t.tensor(shape.scores, WORKING)
    t.node(masked, lambda gradient: t.give(raw, gradient))
    return raw, masked


def gelu(t: Tape, x: Tensor) -> Tensor:
    """BloomGelu: keeps its input alone; both passes are elementary operators (bloom_gelu_forward, bloom_gelu_back)."""
    size = x.storage.size
    kept = t.save(x)
    half, scaled = t.tensor(size, WORKING), t.tensor(size, WORKING)
    argument = _one_plus_square(t, size, scaled)
    tanh = t.tensor(size, WORKING)
    t.drop(argument)
    one_plus = t.tensor(size, WORKING)
    t.drop(tanh)
    out = t.tensor(size, mlp.GATED)
    t.drop(half, one_plus)

    def backward(gradient: Storage) -> None:
        again = t.tensor(size, BACKWARD)
        bent = _one_plus_square(t, size, again)
        tanh_out = t.tensor(size, BACKWARD)
        t.drop(bent)
        dx = _slope(t, size)
        t.drop(tanh_out)
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def _one_plus_square(t: Tape, size: int, factor: Tensor) -> Tensor:
    """``factor * (1 + 0.044715 * x * x)``; drops ``factor``."""
    part = t.tensor(size, WORKING)
    square = t.tensor(size, WORKING)
    t.drop(part)
    one_plus = t.tensor(size, WORKING)
    t.drop(square)
    out = t.tensor(size, WORKING)
    t.drop(factor, one_plus)
    return out


def _slope(t: Tape, size: int) -> Storage:
    """``(0.5 * x * ((1 - tanh²) * (… + … * x * x)) + 0.5 * (1 + tanh)) * g``, each product a tensor."""
    half, square = t.tensor(size, BACKWARD), t.tensor(size, BACKWARD)
    rest = t.tensor(size, BACKWARD)
    t.drop(square)
    part = t.tensor(size, BACKWARD)
    again = t.tensor(size, BACKWARD)
    t.drop(part)
    summed = t.tensor(size, BACKWARD)
    t.drop(again)
    product = t.tensor(size, BACKWARD)
    t.drop(rest, summed)
    first = t.tensor(size, BACKWARD)
    t.drop(half, product)
    one_plus = t.tensor(size, BACKWARD)
    second = t.tensor(size, BACKWARD)
    t.drop(one_plus)
    slope = t.tensor(size, BACKWARD)
    t.drop(first, second)
    dx = t.allocate(size, BACKWARD)
    t.drop(slope)
    return dx

"""Attention in elementary operators, as transformers writes it: ``eager_attention_forward`` of most decoders.

Its products are ``bmm``, which takes samples and heads as one dimension (aten/src/ATen/native/LinearAlgebra.cpp,
_matmul_impl: expand, reshape). Heads that lie within their tokens are copied for it where there are several samples;
those that lie by themselves, or of one sample, are viewed.

Legend: e bytes of an element, b micro batch, s sequence, a heads of queries, k of keys and values, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dsplan.attention import CONTEXT, SCORE_MASK
from dsplan.decoders.attention import SCORES, GroupedShape, repeated, softcapped
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING, dropout, softmax_gradient
from dsplan.tape import Storage, Tape, Tensor

BATCHED = Term("heads copied for a batched product", "e·b·a·s·d each", "aten LinearAlgebra.cpp _matmul_impl: reshape")


@dataclass(frozen=True, kw_only=True)
class Eager:
    """How one family writes it.

    Attributes:
        softcap: whether a tanh caps the scores.
        by_head: whether heads of queries and keys lie by themselves, as ``cat`` makes them; those of values do not.
        through_fp32: whether the softmax is in fp32 whatever the model's type.
        expands: whether fewer heads of keys and values are left to the products, and not repeated before.
        in_place: whether scores are scaled in place, under a name that has them until their softmax is done.
        held: takes the probabilities, which are a part of the result of attention: a name in the block has them until
            it returns.
    """

    softcap: bool = False
    by_head: bool = False
    through_fp32: bool = True
    expands: bool = False
    in_place: bool = False
    held: list[Tensor] = field(default_factory=list)

    def __call__(self, t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: GroupedShape) -> Tensor:
        """``softmax(q kᵀ · scale + mask) v``, its context copied into the order of the tokens: e·b·s·a·d."""
        # repeat_kv copies each head for its group; a single one it expands, which is a view.
        lie_apart = shape.grouped and shape.key_value_heads > 1
        keys, values = (k, v) if self.expands else (repeated(t, each, shape, copies=lie_apart) for each in (k, v))
        keys_by_head = lie_apart or (self.by_head and not shape.grouped)
        scaled, masked = self._masked_scores(t, q, keys, shape, keys_by_head=keys_by_head)
        probabilities = (softmax_through_fp32 if self.through_fp32 else _softmax)(t, masked, shape)
        t.drop(masked, scaled)
        dropped = dropout(
            t, probabilities, shape.num_scores, shape.element_bytes, shape.dropout, SCORE_MASK, term=SCORES
        )
        t.drop(probabilities)
        self.held.append(dropped)
        flat = _batched(t, values, shape, shape.results, by_head=lie_apart)
        kept = [t.save(flat), t.save(dropped)]
        heads_first = t.tensor(shape.results, WORKING)
        t.drop(flat)

        def backward(gradient: Storage) -> None:
            d_v = t.allocate(shape.results, BACKWARD)
            d_probabilities = t.allocate(shape.scores, BACKWARD)
            t.release(gradient)
            t.forget(*kept)
            t.give(flat, self._summed(t, d_v, shape))
            t.give(dropped, d_probabilities)

        t.node(heads_first, backward)
        out = t.tensor(shape.results, CONTEXT)

        def backward_merge(gradient: Storage) -> None:
            if shape.batch > 1:
                by_head = t.allocate(shape.results, BACKWARD)
                t.release(gradient)
                gradient = by_head
            t.give(heads_first, gradient)

        t.node(out, backward_merge)
        t.drop(heads_first)
        if not self.expands:
            t.drop(keys, values)
        return out

    def _summed(self, t: Tape, gradient: Storage, shape: GroupedShape) -> Storage:
        """Over the heads that the product has expanded one of keys or values to."""
        if not (self.expands and shape.grouped):
            return gradient
        summed = t.allocate(shape.keys, BACKWARD)
        t.release(gradient)
        return summed

    def _masked_scores(
        self, t: Tape, q: Tensor, keys: Tensor, shape: GroupedShape, *, keys_by_head: bool
    ) -> tuple[Tensor, Tensor]:
        """``q kᵀ · scale``, capped or not, and that ``+ mask``; only the product saves its operands."""
        scores = shape.scores
        flat_q = _batched(t, q, shape, shape.queries, by_head=self.by_head)
        flat_k = _batched(t, keys, shape, shape.queries, by_head=keys_by_head)
        kept = [t.save(flat_k), t.save(flat_q)]
        raw = t.tensor(scores, WORKING)
        t.drop(flat_q, flat_k)

        def backward_product(gradient: Storage) -> None:
            d_k, d_q = t.allocate(shape.queries, BACKWARD), t.allocate(shape.queries, BACKWARD)
            t.release(gradient)
            t.forget(*kept)
            t.give(flat_q, d_q)
            t.give(flat_k, self._summed(t, d_k, shape))

        t.node(raw, backward_product)
        scaled = t.view(raw.storage) if self.in_place else t.tensor(scores, WORKING)
        t.drop(raw)

        def backward_scale(gradient: Storage) -> None:
            d_raw = t.allocate(scores, BACKWARD)
            t.release(gradient)
            t.give(raw, d_raw)

        t.node(scaled, backward_scale)
        capped = softcapped(t, scaled, scores, WORKING) if self.softcap else scaled
        masked = t.tensor(scores, WORKING)
        t.node(masked, lambda gradient: t.give(capped, gradient))
        if not self.in_place:
            t.drop(capped)
        return capped, masked


def _batched(t: Tape, x: Tensor, shape: GroupedShape, size: int, *, by_head: bool) -> Tensor:
    """``x`` with samples and heads as one dimension, ``size`` bytes."""
    out = t.view(x.storage) if by_head or shape.batch == 1 else t.tensor(size, BATCHED)
    return t.node(out, lambda gradient: t.give(x, gradient))


def _softmax(t: Tape, masked: Tensor, shape: GroupedShape) -> Tensor:
    """``softmax(masked)`` in the model's type: saves its result."""
    probabilities = t.tensor(shape.scores, SCORES)
    kept = t.save(probabilities)

    def backward(gradient: Storage) -> None:
        d_masked = softmax_gradient(t, shape.scores)
        t.release(gradient)
        t.forget(kept)
        t.give(masked, d_masked)

    return t.node(probabilities, backward)


def softmax_through_fp32(t: Tape, masked: Tensor, shape: GroupedShape) -> Tensor:
    """``softmax(masked, dtype=float32).to(dtype)``: the probabilities are kept in fp32 and, cast, in the model's type.

    fp16 goes into the kernel as it is; of bf16 a copy in fp32 is made first (aten/src/ATen/native/SoftMax.cpp).
    """
    scores, wide = shape.scores, 4 * shape.num_scores
    casts = shape.element_bytes != 4
    converts = casts and not shape.is_half
    converted = t.tensor(wide, WORKING) if converts else t.view(masked.storage)
    probabilities = t.tensor(wide, SCORES)
    kept = t.save(probabilities)
    t.drop(converted)

    def backward(gradient: Storage) -> None:
        d_masked = softmax_gradient(t, wide if converts else scores, wide)
        t.release(gradient)
        t.forget(kept)
        if converts:
            d_wide, d_masked = d_masked, t.allocate(scores, BACKWARD)
            t.release(d_wide)
        t.give(masked, d_masked)

    t.node(probabilities, backward)
    if not casts:
        return probabilities
    cast = t.tensor(scores, SCORES)

    def backward_cast(gradient: Storage) -> None:
        d_wide = t.allocate(wide, BACKWARD)
        t.release(gradient)
        t.give(probabilities, d_wide)

    t.node(cast, backward_cast)
    t.drop(probabilities)
    return cast

"""Attention where torch has no kernel: ``F.scaled_dot_product_attention`` in elementary operators.

aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math: torch takes it where keys have
fewer heads than queries and no kernel knows what to do (sdp_utils.cpp, check_batch_size_and_num_heads_dense). Half
precision is computed in fp32 throughout.

Legend: e bytes of an element, b micro batch, s sequence, a heads of queries, k of keys and values, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsplan.attention import CONTEXT
from dsplan.decoders import attention
from dsplan.decoders.attention import REPEATED, GroupedShape
from dsplan.decoders.eager import BATCHED
from dsplan.decoders.parts import copied
from dsplan.kernels import MATH
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING, softmax_gradient
from dsplan.tape import Saved, Storage, Tape, Tensor

WIDE = Term("queries, keys and values in fp32", "4·b·a·s·d, 4·b·k·s·d", "attention.cpp: query_.to(at::kFloat)")
WIDE_SCORES = Term("attention probabilities in fp32", "4·b·a·s²", "attention.cpp _safe_softmax: saved by it and by bmm")
ADDED = Term("mask as it is added", "e·b·s²", "attention.cpp convert_boolean_attn_mask: where")


def sdpa(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: GroupedShape, *, by_head: bool = False) -> Tensor:
    """``sdpa_attention_forward``: by a kernel, or without; the context is in the order of the tokens.

    ``by_head``: queries and keys lie head by head, and with them what a kernel returns, which is copied then.
    """
    if attention.kernel_of(t, shape) == MATH:
        return copied(t, Unfused(t, shape, by_head=by_head)(q, k, v), CONTEXT)
    context = attention.fused(t, q, k, v, shape)
    return copied(t, context, CONTEXT) if by_head else context


@dataclass(frozen=True, kw_only=True)
class _Operands:
    """What the products keep: queries and keys of the first, values and probabilities of the second."""

    first: tuple[Saved, Saved]
    softmax: Saved
    second: tuple[Saved, Saved]


class Unfused:
    """One attention without a kernel.

    Args:
        shape: ``is_masked``: a mask of truth values is given, a row for each sample; else the causal one is made.
        by_head: queries lie head by head, and not within their tokens.
        repeats: keys and values are copied for every head of the queries (``enable_gqa``); else they are expanded.
    """

    def __init__(self, t: Tape, shape: GroupedShape, *, by_head: bool = False, repeats: bool = True) -> None:
        self.t = t
        self.shape, self.wide = shape, replace(shape, element_bytes=4)
        self.casts = shape.element_bytes != 4
        self.copies_queries = shape.batch > 1 and not by_head
        self.repeats = repeats and shape.grouped
        #: What bmm copies of a tensor that is expanded over the heads, or whose heads lie within their tokens.
        self.copies_keys = shape.batch > 1 and not self.repeats

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``softmax(q kᵀ / √d + mask) v``: e·b·a·s·d, head by head."""
        t, wide = self.t, self.wide
        bias = self._bias(self.shape) if self.shape.is_masked else None
        wide_q, *others = (self._widened(x, size) for x, size in ((q, wide.queries), (k, wide.keys), (v, wide.keys)))
        scaled = t.tensor(wide.queries, WORKING)
        bias = bias or self._causal_bias()
        if self.repeats:
            others = [self._in_place_of(each, wide.queries, REPEATED) for each in others]
        first, scores = self._scores(scaled, wide.queries if self.repeats else wide.keys)
        probabilities = self._safe_softmax()
        softmax = t.save(probabilities)
        t.drop(scores)
        narrow = t.tensor(self.shape.scores, WORKING) if self.casts else t.view(probabilities.storage)
        flat = t.tensor(wide.queries, BATCHED) if self.copies_keys else t.view(others[1].storage)
        kept = _Operands(first=first, softmax=softmax, second=(t.save(flat), t.save(probabilities)))
        context = t.tensor(wide.queries, WORKING if self.casts else CONTEXT)
        t.drop(flat)
        out = self._in_place_of(context, self.shape.queries, CONTEXT) if self.casts else context
        t.drop(narrow, probabilities, bias, wide_q, *others, scaled)
        return t.node(out, lambda gradient: self._backward(gradient, kept, (q, k, v)))

    def _scores(self, scaled: Tensor, size_of_keys: int) -> tuple[tuple[Saved, Saved], Tensor]:
        """The product, to which the mask is added in place, and what it keeps."""
        t, wide = self.t, self.wide
        keys = t.tensor(size_of_keys, WORKING)
        flat_q = t.tensor(wide.queries, BATCHED) if self.copies_queries else t.view(scaled.storage)
        flat_k = t.tensor(wide.queries, BATCHED) if self.copies_keys else t.view(keys.storage)
        kept = t.save(flat_k), t.save(flat_q)
        scores = t.tensor(wide.scores, WORKING)
        t.drop(flat_q, flat_k, keys)
        return kept, scores

    def _safe_softmax(self) -> Tensor:
        """Softmax, and zeros where a row is masked as a whole: beside the result which elements and rows are masked."""
        t, wide = self.t, self.wide
        plain = t.tensor(wide.scores, WORKING)
        masked = t.tensor(wide.num_scores, WORKING), t.tensor(wide.num_scores // wide.length, WORKING)
        result = t.tensor(wide.scores, WIDE_SCORES)
        t.drop(plain, *masked)
        return result

    def _backward(self, gradient: Storage, kept: _Operands, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        t, shape, wide = self.t, self.shape, self.wide
        for _ in range(self.casts + (shape.batch > 1)):  # to fp32; head by head
            gradient = self._turned(gradient, wide.queries)
        d_v, d_probabilities = t.allocate(wide.queries, BACKWARD), t.allocate(wide.scores, BACKWARD)
        t.release(gradient)
        t.forget(*kept.second)
        if shape.grouped and not self.repeats:
            d_v = self._turned(d_v, wide.keys)
        d_scores = softmax_gradient(t, wide.scores)
        t.release(d_probabilities)
        t.forget(kept.softmax)
        d_k, d_q = t.allocate(wide.queries, BACKWARD), t.allocate(wide.queries, BACKWARD)
        t.release(d_scores)
        t.forget(*kept.first)
        if self.repeats:  # scaled with the heads of the queries, and then summed
            d_k = self._turned(d_k, wide.queries)
            d_v, d_k = self._turned(d_v, wide.keys), self._turned(d_k, wide.keys)
        else:  # summed, and then scaled
            d_k = self._turned(self._turned(d_k, wide.keys) if shape.grouped else d_k, wide.keys)
        d_q = self._turned(d_q, wide.queries)
        if self.casts:
            d_v, d_k, d_q = (
                self._turned(each, size) for each, size in ((d_v, shape.keys), (d_k, shape.keys), (d_q, shape.queries))
            )
        for tensor, part in zip(inputs, (d_q, d_k, d_v), strict=True):
            t.give(tensor, part)

    def _turned(self, gradient: Storage, size: int) -> Storage:
        """A tensor in the place of ``gradient``: a cast, a copy, a product with a number, a sum over heads."""
        made = self.t.allocate(size, BACKWARD)
        self.t.release(gradient)
        return made

    def _in_place_of(self, x: Tensor, size: int, term: Term) -> Tensor:
        made = self.t.tensor(size, term)
        self.t.drop(x)
        return made

    def _widened(self, x: Tensor, size: int) -> Tensor:
        return self.t.tensor(size, WIDE) if self.casts else self.t.view(x.storage)

    def _bias(self, shape: GroupedShape) -> Tensor:
        """A mask of truth values as what is added."""
        return self.t.tensor(shape.element_bytes * shape.batch * shape.length**2, ADDED)

    def _causal_bias(self) -> Tensor:
        """Of ``ones().tril()``, in fp32, for all samples."""
        t, elements = self.t, self.shape.length**2
        ones, lower = t.tensor(elements, WORKING), t.tensor(elements, WORKING)
        t.drop(ones)
        bias = self._bias(replace(self.wide, batch=1))
        t.drop(lower)
        return bias

"""Attention: the tensors of eager and fused scaled-dot-product attention.

Legend: e bytes of an element, b micro batch, s sequence, h width, a heads, d = h / a head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan import operators
from dsplan.efficient_attention import FLOAT_BYTES, efficient_backward_workspaces
from dsplan.errors import InputError
from dsplan.kernels import CPU_FLASH, EFFICIENT, FLASH
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor
from dsplan.units import round_up

QKV = Term(
    "queries, keys, values", "3·e·b·s·h", "minGPT c_attn; eager bmm keeps contiguous copies, flash the fused tensor"
)
SCORES = Term("attention probabilities", "e·b·a·s² each", "aten _softmax result, dropped copy (bmm); derivatives.yaml")
SCORE_MASK = Term("attention dropout mask", "b·a·s²", "aten native_dropout")
CAUSAL = Term("causal mask of each block", "s²", "minGPT masked_fill saves its mask (bool)")
PADDED_CONTEXT = Term(
    "attention output with padded heads", "e·b·s·a·⌈d / 8⌉·8", "attention.cpp, pad_last_dim: kept for the backward pass"
)
CONTEXT = Term("attention output", "e·b·s·h", "saved as the input of c_proj")
LOG_SUM_EXP = Term("attention log-sum-exp", "4·b·a·s", "aten _scaled_dot_product_*_attention")
RNG_STATE = Term(
    "attention random state", "2 · 8 bytes", "aten _scaled_dot_product_flash_attention philox seed and offset"
)
ACCUMULATOR = Term("flash attention dq accumulator", "4·b·a·s·d, padded", "flash_api.cpp mha_bwd dq_accum, softmax_d")


#: Head sizes of flash attention are multiples of this (attention.cpp, pad_last_dim<8>).
FLASH_ALIGNMENT = 8


@dataclass(slots=True)
class AttentionShape:
    """Sizes of one attention core in elements and counts."""

    batch: int
    length: int
    heads: int
    head_width: int
    element_bytes: int
    dropout: float

    @property
    def values_bytes(self) -> int:
        """One of q, k, v, output: e·b·s·h."""
        return self.element_bytes * self.batch * self.length * self.heads * self.head_width

    @property
    def is_one_head(self) -> bool:
        """Whether a sample's heads lie as ``c_attn`` made them and ``c_proj`` takes them: nothing has to be copied."""
        return self.heads == 1

    @property
    def num_scores(self) -> int:
        return self.batch * self.heads * self.length**2


def eager(t: Tape, qkv: Tensor, shape: AttentionShape) -> Tensor:
    """``softmax(q kᵀ / √d + mask) v`` in elementary operators, as minGPT writes it."""
    one, scores = shape.values_bytes, shape.element_bytes * shape.num_scores
    value = t.view(qkv.storage)
    q, k = head_first(t, qkv, shape), head_first(t, qkv, shape)
    kept_qk = [t.save(q), t.save(k)]
    raw = t.tensor(scores, WORKING)
    t.drop(q, k)
    scaled = t.tensor(scores, WORKING)
    t.drop(raw)
    mask = t.tensor(shape.length**2, CAUSAL)
    kept_mask = t.save(mask)
    filled = t.tensor(scores, WORKING)
    t.drop(mask, scaled)
    probabilities = t.tensor(scores, SCORES)
    kept_probabilities = t.save(probabilities)
    t.drop(filled)

    def backward_scores(gradient: Storage) -> None:
        d_filled = operators.softmax_gradient(t, scores)
        t.release(gradient)
        t.forget(kept_probabilities)
        d_scaled = t.allocate(scores, BACKWARD)
        t.release(d_filled)
        t.forget(kept_mask)
        d_raw = t.allocate(scores, BACKWARD)
        t.release(d_scaled)
        d_q, d_k = t.allocate(one, BACKWARD), t.allocate(one, BACKWARD)
        t.release(d_raw)
        t.forget(*kept_qk)
        d_v = t.take_gradient(value)
        assert d_v is not None
        # That of the keys comes transposed (bmm's backward), and so does that of the values: they are copied.
        _concatenate_gradients(t, qkv, [d_v, d_k, d_q], copies=0 if shape.is_one_head else 2, size=one)

    t.node(probabilities, backward_scores)
    dropped = t.module(
        "attn.attn_dropout",
        lambda x: operators.dropout(
            t, x, shape.num_scores, shape.element_bytes, shape.dropout, SCORE_MASK, term=SCORES
        ),
        probabilities,
    )
    t.drop(probabilities)
    v = head_first(t, qkv, shape)
    kept_v, kept_dropped = t.save(v), t.save(dropped)
    out = t.tensor(one, CONTEXT if shape.is_one_head else WORKING)
    t.drop(v, dropped)
    out = side_by_side(t, out, shape)
    t.drop(value)

    def backward_values(gradient: Storage) -> None:
        d_heads_first = heads_first_gradient(t, gradient, shape)
        d_v = t.allocate(one, BACKWARD)
        d_dropped = t.allocate(scores, BACKWARD)
        t.release(d_heads_first)
        t.forget(kept_v, kept_dropped)
        t.give(value, d_v)
        t.give(dropped, d_dropped)

    return t.node(out, backward_values)


def head_first(t: Tape, qkv: Tensor, shape: AttentionShape) -> Tensor:
    """Queries, keys or values with samples and heads as one dimension, as ``bmm`` takes them.

    Of several samples that is a copy; of one sample, or one head, it is a view, which holds what ``c_attn`` made (aten
    matmul, reshape).
    """
    return t.view(qkv.storage) if shape.batch == 1 or shape.is_one_head else t.tensor(shape.values_bytes, QKV)


def side_by_side(t: Tape, heads_first: Tensor, shape: AttentionShape) -> Tensor:
    """``y.transpose(1, 2).contiguous()`` of what ``bmm`` made, in its place; of one head it is that tensor itself."""
    if shape.is_one_head:
        return heads_first
    out = t.tensor(shape.values_bytes, CONTEXT)
    t.drop(heads_first)
    return out


def heads_first_gradient(t: Tape, gradient: Storage, shape: AttentionShape) -> Storage:
    """Backward of :func:`side_by_side` as ``bmm`` takes it, in the place of ``gradient``: as :func:`head_first`."""
    if shape.batch == 1 or shape.is_one_head:
        return gradient
    found = t.allocate(shape.values_bytes, BACKWARD)
    t.release(gradient)
    return found


def fused(t: Tape, qkv: Tensor, shape: AttentionShape) -> Tensor:
    """``F.scaled_dot_product_attention(is_causal=True)`` by the kernel that torch picks on the device."""
    kernel = t.kernels.attention_kernel(element_bytes=shape.element_bytes, dropout=shape.dropout)
    if kernel not in (FLASH, EFFICIENT, CPU_FLASH):
        raise InputError(
            "attention: sdpa with dropout has no fused kernel on the CPU and is not planned there; "
            "set dropout to 0 or attention to eager"
        )
    if kernel == FLASH and shape.head_width % FLASH_ALIGNMENT:
        return _padded_flash(t, qkv, shape)
    one = shape.values_bytes
    lse_length = round_up(shape.length, 32) if kernel == EFFICIENT else shape.length
    kept = [t.save(qkv)]
    out = t.tensor(one, CONTEXT)
    extras = [t.tensor(4 * shape.batch * shape.heads * lse_length, LOG_SUM_EXP)]
    if kernel != CPU_FLASH:
        extras += [t.tensor(8, RNG_STATE), t.tensor(8, RNG_STATE)]
    kept += [t.save(extra) for extra in extras] + [t.save(out)]
    t.drop(*extras)

    def backward(gradient: Storage) -> None:
        parts = [t.allocate(one, BACKWARD) for _ in range(3)]
        if kernel == FLASH:
            _accumulate(t, shape)
        elif kernel == EFFICIENT:
            efficient_workspaces(t, shape.element_bytes, shape.batch, shape.heads, shape.length, shape.head_width)
        t.release(gradient)
        t.forget(*kept)
        _concatenate_gradients(t, qkv, parts, copies=0, size=one)

    return t.node(out, backward)


def _padded_flash(t: Tape, qkv: Tensor, shape: AttentionShape) -> Tensor:
    """Flash attention with heads that are padded to a multiple of 8 and cut again.

    aten/src/ATen/native/transformers/attention.cpp, ``pad_last_dim`` and ``post_process_flash_output``.
    """
    one = shape.values_bytes
    padded = one // shape.head_width * round_up(shape.head_width, FLASH_ALIGNMENT)
    inputs = [t.tensor(padded, QKV) for _ in range(3)]
    kept = [t.save(each) for each in inputs]
    whole = t.tensor(padded, PADDED_CONTEXT)
    extras = [t.tensor(4 * shape.batch * shape.heads * shape.length, LOG_SUM_EXP)]
    extras += [t.tensor(8, RNG_STATE), t.tensor(8, RNG_STATE)]
    kept += [t.save(extra) for extra in extras] + [t.save(whole)]
    t.drop(*extras, *inputs)
    context = t.tensor(one, CONTEXT)  # what is cut off lies between the heads: contiguous() has to copy
    t.drop(whole)

    def backward(gradient: Storage) -> None:
        d_whole = t.allocate(padded, BACKWARD)
        t.release(gradient)
        parts = [t.allocate(padded, BACKWARD) for _ in range(3)]
        _accumulate(t, shape)
        t.release(d_whole)
        t.forget(*kept)
        _concatenate_gradients(t, qkv, parts, copies=3, size=one)

    return t.node(context, backward)


def efficient_workspaces(t: Tape, element_bytes: int, batch: int, heads: int, length: int, head_width: int) -> None:
    """What memory-efficient attention's backward takes beside its results."""
    if element_bytes != FLOAT_BYTES:  # the sums over a head alone
        t.temporary(FLOAT_BYTES * batch * heads * length, ACCUMULATOR)
        return
    for part in efficient_backward_workspaces(batch, heads, length, head_width):
        t.temporaries(part, ACCUMULATOR)


def _accumulate(t: Tape, shape: AttentionShape) -> None:
    rows = shape.batch * shape.heads * round_up(shape.length, 128)
    t.temporaries((4 * rows * round_up(shape.head_width, 32), 4 * rows), ACCUMULATOR)


def _concatenate_gradients(t: Tape, qkv: Tensor, parts: list[Storage], *, copies: int, size: int) -> None:
    """Backward of ``split``: the three gradients are concatenated; some are copied first, contiguous or cut."""
    for index in range(copies):
        copy = t.allocate(size, BACKWARD)
        t.release(parts[index])
        parts[index] = copy
    whole = t.allocate(3 * size, BACKWARD)
    for part in parts:
        t.release(part)
    t.give(qkv, whole)

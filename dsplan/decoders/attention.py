"""Attention as transformers calls it: queries, and keys and values of fewer heads, each from its own projection.

Legend: e bytes of an element, b micro batch, s sequence, a heads of queries, k of keys and values, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsplan.attention import ACCUMULATOR, CONTEXT, LOG_SUM_EXP, RNG_STATE, efficient_workspaces
from dsplan.errors import InputError
from dsplan.kernels import CPU_FLASH, EFFICIENT, FLASH, MATH
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor
from dsplan.units import round_up

REPEATED = Term("keys and values repeated", "e·b·a·s·d each", "integrations/sdpa_attention.py repeat_kv")
SCORES = Term("attention probabilities", "e·b·a·s² (softmax: 4·b·a·s²)", "modeling_llama.py eager_attention_forward")
EXPANDED = Term("gradients of repeated keys and values", "e·b·a·s·d each", "flash_api.cpp mha_bwd dk_expanded")
BIAS = Term("mask as the attention kernel takes it", "e·b·s·⌈s⌉₁₆", "attention.cpp convert_boolean_attn_mask, pad_bias")
#: attention.cpp pad_bias: 16 elements.
BIAS_ALIGNMENT = 16
#: sdp_utils.cpp check_flash_attention_head_dim_size.
LARGEST_FLASH_HEAD = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedShape:
    """Sizes of one attention core in elements and counts; ``is_half``: in fp16.

    ``value_size``: elements of a head of values where they are not those of queries and keys. ``is_masked``: whether a
    mask of truth values is given; ``mask_heads``: or one that is added, with rows for as many heads.
    """

    batch: int
    length: int
    heads: int
    key_value_heads: int
    head_size: int
    element_bytes: int
    is_half: bool = False
    dropout: float = 0.0
    value_size: int | None = None
    is_masked: bool = False
    mask_heads: int = 0

    @property
    def queries(self) -> int:
        """Bytes of q, and of the result: e·b·s·a·d."""
        return self.element_bytes * self.batch * self.length * self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Bytes of k, and of v: e·b·s·k·d."""
        return self.element_bytes * self.batch * self.length * self.key_value_heads * self.head_size

    @property
    def values(self) -> int:
        """Bytes of v: e·b·s·k·d, or with the values' own size."""
        return self.keys if self.value_size is None else self.keys // self.head_size * self.value_size

    @property
    def results(self) -> int:
        """Bytes of the result, which has the heads of q and the sizes of v."""
        return self.queries if self.value_size is None else self.queries // self.head_size * self.value_size

    @property
    def num_scores(self) -> int:
        """Elements of the scores of all queries' heads: b·a·s²."""
        return self.batch * self.heads * self.length**2

    @property
    def scores(self) -> int:
        """Bytes of the scores in the model's type: e·b·a·s²."""
        return self.element_bytes * self.num_scores

    @property
    def grouped(self) -> bool:
        """Whether several heads of queries share one of keys and values: k < a."""
        return self.heads != self.key_value_heads


def kernel_of(t: Tape, shape: GroupedShape) -> str:
    """The kernel that torch picks for ``F.scaled_dot_product_attention(is_causal=True, enable_gqa=...)``.

    Raises:
        InputError: one that is not written down.
    """
    kernel = t.kernels.attention_kernel(element_bytes=shape.element_bytes, dropout=shape.dropout)
    unlike = shape.value_size not in (None, shape.head_size)
    if kernel == FLASH and (shape.head_size > LARGEST_FLASH_HEAD or unlike or shape.is_masked):
        kernel = EFFICIENT
    if kernel == EFFICIENT and shape.grouped and not shape.dropout:
        return MATH
    grouped_by_kernel = kernel == FLASH or not shape.grouped
    if kernel not in (FLASH, EFFICIENT, CPU_FLASH) or not grouped_by_kernel or shape.head_size % 8:
        raise InputError(
            "attention: sdpa of these heads in this precision has no fused kernel, and is not planned by formulas; "
            "use bf16 or fp16 on a GPU, or verify it with a dry run (dsplan verify --device fake)"
        )
    return kernel


def fused(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: GroupedShape) -> Tensor:
    """``F.scaled_dot_product_attention`` by a kernel.

    Raises:
        InputError: torch would run elementary operators in place of a kernel, or one that is not written down.
    """
    kernel = kernel_of(t, shape)
    assert kernel != MATH, "dsplan.decoders.unfused has it"
    length = round_up(shape.length, 32) if kernel == EFFICIENT else shape.length
    kept = [t.save(each) for each in (q, k, v)]
    if shape.is_masked:
        bias = attention_bias(t, shape)
        kept.append(t.save(bias))
        t.drop(bias)
    out = t.tensor(shape.results, CONTEXT)
    extras = [t.tensor(4 * shape.batch * shape.heads * length, LOG_SUM_EXP)]
    if kernel != CPU_FLASH:
        extras += [t.tensor(8, RNG_STATE), t.tensor(8, RNG_STATE)]
    kept += [t.save(extra) for extra in extras] + [t.save(out)]
    t.drop(*extras)

    def backward(gradient: Storage) -> None:
        parts = [t.allocate(size, BACKWARD) for size in (shape.queries, shape.keys, shape.values)]
        if kernel == FLASH:
            rows = shape.batch * shape.heads * round_up(shape.length, 128)
            held = [t.allocate(4 * rows, ACCUMULATOR)]
            held.append(t.allocate(4 * rows * round_up(shape.head_size, 32), ACCUMULATOR))
            if shape.grouped:
                held += [t.allocate(shape.queries, EXPANDED) for _ in range(2)]
            for each in held:
                t.release(each)
        elif kernel == EFFICIENT:
            efficient_workspaces(t, shape.element_bytes, shape.batch, shape.heads, shape.length, shape.head_size)
        t.release(gradient)
        t.forget(*kept)
        for tensor, part in zip((q, k, v), parts, strict=True):
            t.give(tensor, part)

    return t.node(out, backward)


def windowed(t: Tape, q: Tensor, k: Tensor, v: Tensor, shape: GroupedShape) -> Tensor:
    """``sdpa`` with a mask, which groups of heads are not passed to: keys and values are repeated first.

    integrations/sdpa_attention.py use_gqa_in_sdpa. The kernel's result has the order of the tokens.
    """
    keys, values = (repeated(t, each, shape, copies=shape.key_value_heads > 1) for each in (k, v))
    out = fused(t, q, keys, values, replace(shape, key_value_heads=shape.heads, is_masked=True))
    t.drop(keys, values)
    return out


def attention_bias(t: Tape, shape: GroupedShape) -> Tensor:
    """What the memory-efficient kernel makes of a mask of truth values, for each sample: rows padded to 16 elements.

    aten/src/ATen/native/transformers/attention.cpp, convert_boolean_attn_mask and pad_bias.
    """
    rows, length = shape.batch * (shape.mask_heads or 1) * shape.length, shape.length
    if shape.mask_heads and length % BIAS_ALIGNMENT == 0:
        return Tensor(Storage(0, BIAS, silent=True))  # the one that all blocks share
    if shape.mask_heads:
        return t.tensor(shape.element_bytes * rows * round_up(length, BIAS_ALIGNMENT), BIAS)
    bias = t.tensor(shape.element_bytes * rows * length, BIAS)
    if length % BIAS_ALIGNMENT == 0:
        return bias
    padded = t.tensor(shape.element_bytes * rows * round_up(length, BIAS_ALIGNMENT), BIAS)
    t.drop(bias)
    return padded


def repeated(t: Tape, x: Tensor, shape: GroupedShape, *, copies: bool = True) -> Tensor:
    """``repeat_kv``: a copy for every head of the queries; nothing where there are as many.

    ``copies``: it is one; of a single head the expanded tensor is a view, which a matrix product copies, but no kernel.
    """
    if not shape.grouped:
        return t.node(t.view(x.storage), lambda gradient: t.give(x, gradient))
    out = t.tensor(shape.queries, REPEATED) if copies else t.view(x.storage)

    def backward(gradient: Storage) -> None:
        summed = t.allocate(shape.keys, BACKWARD)
        t.release(gradient)
        t.give(x, summed)

    return t.node(out, backward)


def softcapped(t: Tape, x: Tensor, size: int, term: Term) -> Tensor:
    """``tanh(x / cap) · cap`` (modeling_gemma2.py), which takes the place of ``x``: saves tanh's result."""
    divided = t.tensor(size, WORKING)
    t.drop(x)
    bent = t.tensor(size, SCORES)
    kept = t.save(bent)
    t.drop(divided)
    out = t.tensor(size, term)
    t.drop(bent)

    def backward(gradient: Storage) -> None:
        d_bent = t.allocate(size, BACKWARD)
        t.release(gradient)
        d_divided = t.allocate(size, BACKWARD)
        t.release(d_bent)
        t.forget(kept)
        d_x = t.allocate(size, BACKWARD)
        t.release(d_divided)
        t.give(x, d_x)

    return t.node(out, backward)

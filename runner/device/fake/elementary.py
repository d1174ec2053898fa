"""Attention where no kernel fits: torch's own elementary operators, as it runs them on a CUDA device.

``aten._scaled_dot_product_attention_math`` itself would add the mask out of place, for fake tensors are subclasses
(at::areAnyTensorSubclassLike), and would show of ``_safe_softmax`` the result alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_NARROW = (torch.float16, torch.bfloat16)


def elementary_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math.

    Half precision is computed in fp32 (Context.h, allowFP16BF16ReductionMathSDP, off unless it is asked for). Names
    live as long as there; the second part of its result, the probabilities in the queries' type, is made first.
    """
    dtype = query.dtype
    bias = None if mask is None else additive(mask, dtype)
    wide_query, wide_key, wide_value = (
        tensor.float() if dtype in _NARROW else tensor for tensor in (query, key, value)
    )
    root = (query.size(-1) ** -0.5 if scale is None else scale) ** 0.5
    scaled = wide_query * root
    if is_causal:
        shape = (query.size(-2), key.size(-2))
        bias = additive(torch.ones(shape, dtype=torch.bool, device=query.device).tril(), scaled.dtype)
    if enable_gqa:
        wide_key, wide_value = (
            tensor.repeat_interleave(query.size(-3) // tensor.size(-3), -3) for tensor in (wide_key, wide_value)
        )
    scores = torch.matmul(scaled, wide_key.transpose(-2, -1) * root)
    if bias is not None:
        scores.add_(bias)
    probabilities: Tensor = _SafeSoftmax.apply(scores)  # type: ignore[no-untyped-call]
    del scores
    if dropout_p > 0.0:
        probabilities = torch.dropout(probabilities, dropout_p, train=True)
    narrow = probabilities.to(dtype)
    context = torch.matmul(probabilities, wide_value).to(dtype)
    del narrow
    return context


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of truth values as what is added: 0 or minus infinity (attention.cpp, convert_boolean_attn_mask)."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype, device=mask.device))


class _SafeSoftmax(torch.autograd.Function):
    """aten/src/ATen/native/transformers/attention.cpp, _safe_softmax: rows that are masked as a whole become zeros."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        found = torch.softmax(scores, -1)
        is_masked = scores.isneginf()
        rows = is_masked.all(-1, keepdim=True)
        zero = torch.scalar_tensor(0.0, dtype=found.dtype, device=found.device)
        result = torch.where(rows, zero, found)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return aten._softmax_backward_data(gradient, result, -1, result.dtype)  # type: ignore[no-any-return]

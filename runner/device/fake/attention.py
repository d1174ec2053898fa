"""Fused attention as torch would choose it on the target: on the pretend device torch itself would fall to math."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsplan.kernels import EFFICIENT, FLASH, Kernels
from runner.device.fake import autocast
from runner.device.fake.backend import NAME

aten = torch.ops.aten

_FLASH_ALIGNMENT = 8  # head sizes are padded to it (aten/src/ATen/native/transformers/attention.cpp, pad_last_dim)


def fused_attention(kernels: Kernels, casts: autocast.Casts) -> Callable[..., Tensor]:
    """A scaled_dot_product_attention that calls the kernel of ``kernels`` for its inputs; ``casts`` are autocast's.

    Follows aten/src/ATen/native/transformers/attention.cpp, scaled_dot_product_attention. Masks other than the
    causal one, and grouped queries, are not covered: NotImplementedError.
    """

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is not None or enable_gqa:
            raise NotImplementedError(
                "the dry run does not cover attention masks and grouped queries in fused attention"
            )
        if not autocast.is_on():
            return _attention(kernels, query, key, value, dropout_p, is_causal, scale)
        dtype = torch.get_autocast_dtype(NAME)  # scaled_dot_product_attention is on autocast's lower precision list
        query, key, value = (casts.cast(dtype, tensor) for tensor in (query, key, value))
        with autocast.without():
            return _attention(kernels, query, key, value, dropout_p, is_causal, scale)

    return attention


def _attention(
    kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None
) -> Tensor:
    kind = kernels.attention_kernel(element_bytes=query.element_size(), dropout=dropout_p)
    if kind == FLASH:
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if kind == EFFICIENT:
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        result = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, trains, dropout_p, is_causal, scale=scale
        )
        return result[0]  # type: ignore[no-any-return]
    raise NotImplementedError(f"the dry run does not cover the attention kernel {kind!r}")


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    size = query.size(-1)
    padding = -size % _FLASH_ALIGNMENT
    if padding:
        query, key, value = (F.pad(tensor, (0, padding)) for tensor in (query, key, value))
    options: dict[str, Any] = {"scale": size**-0.5 if scale is None else scale}
    output = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, **options)[0]
    return output[..., :size] if padding else output  # type: ignore[no-any-return]

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
from runner.device.fake.elementary import additive, elementary_attention

aten = torch.ops.aten

#: sdp_utils.cpp, check_flash_attention_head_dim_size.
_LARGEST_FLASH_HEAD = 256
_FLASH_ALIGNMENT = 8  # head sizes are padded to it (aten/src/ATen/native/transformers/attention.cpp, pad_last_dim)


def fused_attention(kernels: Kernels, casts: autocast.Casts) -> Callable[..., Tensor]:
    """A scaled_dot_product_attention that calls the kernel of ``kernels`` for its inputs; ``casts`` are autocast's.

    Follows aten/src/ATen/native/transformers/attention.cpp, scaled_dot_product_attention. Masks other than the
    causal one are covered by the memory-efficient kernel alone, which torch takes for them (sdp_utils.cpp,
    use_flash_attention: check_for_attn_mask); grouped queries by flash alone, and fewer keys than queries that are not
    said to be grouped by none (check_batch_size_and_num_heads_dense): then torch's elementary operators are run.
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
        if not autocast.is_on():
            return _attention(kernels, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        dtype = torch.get_autocast_dtype(NAME)  # scaled_dot_product_attention is on autocast's lower precision list
        query, key, value = (casts.cast(dtype, tensor) for tensor in (query, key, value))
        with autocast.without():
            return _attention(kernels, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    return attention


def _attention(
    kernels: Kernels,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    kind = kernels.attention_kernel(element_bytes=query.element_size(), dropout=dropout_p)
    if kind == FLASH and (mask is not None or query.size(-1) > _LARGEST_FLASH_HEAD or value.size(-1) != query.size(-1)):
        kind = EFFICIENT
    if query.size(-3) != key.size(-3) and not (kind == FLASH and enable_gqa):
        return elementary_attention(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)
    if kind == FLASH:
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if kind == EFFICIENT:
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        result = aten._scaled_dot_product_efficient_attention(
            query, key, value, _bias(mask, query), trains, dropout_p, is_causal, scale=scale
        )
        return result[0]  # type: ignore[no-any-return]
    raise NotImplementedError(f"the dry run does not cover the attention kernel {kind!r}")


def _bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask as the memory-efficient kernel takes it (attention.cpp).

    Rows that are no multiple of 16 elements are padded, and the padding cut off again by a view (pad_bias); then every
    sample and head sees the same rows (expand).
    """
    if mask is None:
        return None
    mask = additive(mask, query.dtype)
    length = mask.size(-1)
    if length % 16:
        mask = F.pad(mask, (0, 16 - length % 16))[..., :length]
    return mask.expand(query.size(0), query.size(1), query.size(2), length)


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    size = query.size(-1)
    padding = -size % _FLASH_ALIGNMENT
    if padding:
        query, key, value = (F.pad(tensor, (0, padding)) for tensor in (query, key, value))
    options: dict[str, Any] = {"scale": size**-0.5 if scale is None else scale}
    output = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, **options)[0]
    return output[..., :size] if padding else output  # type: ignore[no-any-return]

"""ZeRO++'s quantiser of weights: its functions take from the device their results and nothing else.

Source: DeepSpeed csrc/quantization/pt_binding.cpp; the launchers there are kernels without memory of their own.
Quantised gradients are not covered: they depend on how many devices a node has, which a dry run is not told
(runtime/comm/coalesced_collectives.py, all_to_all_quant_reduce).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: One scale a group; the asymmetric kind has two, and DeepSpeed's training never asks for it.
SYMMETRIC = "symmetric"

_BYTE_BITS = 8


def quantize(values: Tensor, groups: int, bits: int, kind: str) -> tuple[Tensor, Tensor]:
    """``values`` in ``bits`` each, and the scales."""
    _require_symmetric(kind)
    scales = torch.empty(groups, 1, dtype=torch.float32, device=values.device)
    *outer, last = values.shape
    return torch.empty(*outer, last * bits // _BYTE_BITS, dtype=torch.int8, device=values.device), scales


def dequantize(values: Tensor, _scales: Tensor, _groups: int, bits: int, kind: str) -> Tensor:
    """The values in fp16."""
    _require_symmetric(kind)
    *outer, last = values.shape
    return torch.empty(*outer, last * _BYTE_BITS // bits, dtype=torch.float16, device=values.device)


def _require_symmetric(kind: str) -> None:
    if kind != SYMMETRIC:
        raise NotImplementedError("the dry run does not cover asymmetric quantisation")

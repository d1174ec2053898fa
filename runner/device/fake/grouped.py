"""Grouped products of any floating type: the shape that CUDA's kernel gives them.

torch's own shape function (torch/_meta_registrations.py, _meta_grouped_mm_common) refuses all but bf16. On CUDA only
the fast kernels of sm90 and sm100 ask for it; else each group is multiplied by itself, into its rows of the same
result, and nothing more is taken (aten/src/ATen/native/cuda/GroupedBlas.cpp, _grouped_mm_cuda;
aten/src/ATen/native/GroupedMMUtils.h, _grouped_mm_fallback).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import _meta_registrations as shapes

_checked: Any = shapes._meta_grouped_mm_common
_result: Any = shapes._create_grouped_mm_output_tensor
_TYPES = (torch.float16, torch.float32)


def grouped_product(mat_a: Any, mat_b: Any, scale_a: Any, scale_b: Any, offs: Any = None, **options: Any) -> Any:
    """``_meta_grouped_mm_common``, for fp16 and fp32 as for bf16; two types at once are refused as there."""
    if scale_a is None and mat_a.dtype == mat_b.dtype and mat_a.dtype in _TYPES:
        return _result(mat_a, mat_b, offs, options.get("out_dtype"))
    return _checked(mat_a, mat_b, scale_a, scale_b, offs, **options)

"""Softmax of fp16 into fp32, which a CUDA device does in one kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def half_to_float(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``F.softmax`` without the copy in fp32 that torch makes on every other device.

    aten/src/ATen/native/SoftMax.cpp, softmax: of fp16 on CUDA the kernel reads its input as it is (half_to_float), and
    the gradient comes back in fp16.
    """

    def function(
        input: Tensor,  # torch's name
        dim: int | None = None,
        _stacklevel: int = 3,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if dtype == torch.float32 and input.dtype == torch.float16 and dim is not None:
            return torch.ops.aten._softmax(input, dim, True)  # type: ignore[no-any-return]
        return softmax(input, dim, _stacklevel, dtype)

    return function

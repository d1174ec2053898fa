"""Views of fake tensors without their dispatch: a view takes no memory, and on 512 ranks there are half a million."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from runner.device.fake.light import template_of, view


def narrow(tensor: Any, dim: Any, start: Any, length: Any) -> Any:
    """``torch.Tensor.narrow``; the short way for what autograd does not follow, and for what is no error.

    aten/src/ATen/native/TensorShape.cpp, narrow_symint: a start below zero counts from the end.
    """
    if (
        type(start) is int
        and type(length) is int
        and type(dim) is int
        and type(tensor) is FakeTensor
        and not tensor.requires_grad
        and tensor.constant is None
    ):
        shape = list(tensor.shape)
        if 0 <= dim < len(shape):
            size = shape[dim]
            if start < 0:
                start += size
            if start >= 0 and length >= 0 and start + length <= size:
                return _part(tensor, shape, dim, start, length)
    return torch.Tensor.narrow(tensor, dim, start, length)


def get_item(tensor: Any, index: Any) -> Any:
    """``tensor[start:stop]`` the short way; a list of indices through the host, where torch would ask for a kernel."""
    if type(index) is slice and index.step is None and not tensor.requires_grad and tensor.constant is None:
        shape = list(tensor.shape)
        if shape:
            start, stop, _ = index.indices(shape[0])
            return _part(tensor, shape, 0, start, max(stop - start, 0))
    if isinstance(index, tuple) and any(type(each) is list for each in index):
        index = tuple(torch.tensor(each).to(tensor.device) if type(each) is list else each for each in index)
    return torch.Tensor.__getitem__(tensor, index)


def _part(tensor: Any, shape: list[int], dim: int, start: int, length: int) -> Any:
    stride = tensor.stride()
    shape[dim] = length
    offset = tensor.storage_offset() + start * stride[dim]
    return view(tensor, shape, stride, offset, tensor.dtype, template_of(tensor.fake_mode, tensor._fake_device))

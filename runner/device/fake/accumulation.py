"""How autograd adds up the gradients of a tensor that is used twice: on a real device, often in place."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from runner.device.fake.hidden import in_backward
from runner.device.fake.source import owner

ADD = torch.ops.aten.add.Tensor
_OPERANDS = 2
_SOLE_OWNER = 2  # uses of a storage: the tensor's, and that of Python's view of it while it is asked
#: Uses of a tensor: autograd's buffer, Python's object, and the arguments of the call twice over. One more where Python
#: holds it elsewhere, as a reentrant checkpoint's backward does its arguments (can_accumulate_inplace: use_count).
_USES_OF_A_TENSOR = 4


def adds_in_place(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    """Whether autograd itself adds a gradient to one that nobody else holds.

    It then adds in place (torch/csrc/autograd/input_buffer.cpp, ``accumulate``), but never while a dispatch mode
    watches. To be called from the mode itself.
    """
    if kwargs or len(args) != _OPERANDS or not in_backward() or owner(2)[0] is not None:
        return False
    ours, theirs = args
    if not (isinstance(ours, FakeTensor) and isinstance(theirs, FakeTensor)) or ours.shape != theirs.shape:
        return False
    if ours._use_count() > _USES_OF_A_TENSOR:  # type: ignore[attr-defined]
        return False
    return torch._C._storage_Use_Count(ours.untyped_storage()._cdata) == _SOLE_OWNER

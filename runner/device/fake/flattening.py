"""What NCCL's process group takes to gather into a list of tensors: one for all of them, which it copies apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


class Gathered:
    """The handle of a gather, which keeps the tensor that was gathered into for as long as somebody keeps the handle:
    a wait gives back what the collective stashed, but not its result (ProcessGroupNCCL.cpp, ``WorkNCCL::outputs_``)."""

    def __init__(self, work: Any, result: torch.Tensor | None) -> None:
        self._work = work
        self._result = result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def gathering_flat(all_gather: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.distributed.all_gather``, which takes the tensor that NCCL's gathers into.

    Tensors of one size are gathered into one of all ranks' (torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp,
    ``allgather``: ``newLikeFlat``); others are broadcast one by one.
    """

    @functools.wraps(all_gather)
    def wrapped(tensor_list: list[torch.Tensor], *arguments: Any, **options: Any) -> Any:
        result = None
        if len({each.shape for each in tensor_list}) == 1:
            first = tensor_list[0]
            result = torch.empty((len(tensor_list), *first.shape), dtype=first.dtype, device=first.device)
        work = all_gather(tensor_list, *arguments, **options)
        return None if work is None else Gathered(work, result)

    return wrapped

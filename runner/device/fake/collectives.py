"""Collectives that are under way hold their tensors until somebody waits for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

#: What DeepSpeed asks for with ``async_op`` (deepspeed/comm/torch.py).
NAMES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_to_all_single",
    "broadcast",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class Work:
    """A collective under way: its tensors live until ``wait``, or as long as the handle does."""

    def __init__(self, work: Any, tensors: list[torch.Tensor]) -> None:
        self._work = work
        self._tensors: list[torch.Tensor] | None = tensors

    def wait(self, *arguments: Any, **options: Any) -> Any:
        self._tensors = None
        return self._work.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def holding(collective: Callable[..., Any]) -> Callable[..., Any]:
    """``collective``, which with ``async_op`` holds its tensors as NCCL's does."""

    @functools.wraps(collective)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        work = collective(*arguments, **options)
        if work is None or not options.get("async_op"):
            return work
        return Work(work, [tensor for value in (*arguments, *options.values()) for tensor in _tensors(value)])

    return wrapped


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for each in value if isinstance(each, torch.Tensor)] if isinstance(value, (list, tuple)) else []

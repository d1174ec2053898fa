"""Collectives that are under way hold their tensors until somebody waits for them.

Or until the next collective after torch's watchdog, which looks every 100 ms, has seen them done
(torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp, ``shelvesToUnstash_``). When that is depends on the clock: a run lies
between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed
from torch.distributed._meta_registrations import _META_FUNCTIONS

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

    def give_back(self) -> None:
        self._tensors = None

    def wait(self, *arguments: Any, **options: Any) -> Any:
        self.give_back()
        return self._work.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class UnderWay:
    """The collectives that hold tensors.

    Args:
        early: each gives back what those before it hold, as if the watchdog had always seen them done by then: the
            least that a run can hold. Otherwise the watchdog never comes before the wait: the most.
    """

    def __init__(self, *, early: bool) -> None:
        self._early = early
        self._works: WeakSet[Work] = WeakSet()

    def hold(self, work: Any, tensors: list[torch.Tensor]) -> Work:
        """``work``, which holds ``tensors``."""
        if self._early:
            for each in self._works:
                each.give_back()
        held = Work(work, tensors)
        self._works.add(held)
        return held


def holding(collective: Callable[..., Any], under_way: UnderWay) -> Callable[..., Any]:
    """``collective``, which with ``async_op`` holds its tensors as NCCL's does."""

    @functools.wraps(collective)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        work = collective(*arguments, **options)
        if work is None or not options.get("async_op"):
            return work
        return under_way.hold(work, [each for value in (*arguments, *options.values()) for each in _tensors(value)])

    return wrapped


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for each in value if isinstance(each, torch.Tensor)] if isinstance(value, (list, tuple)) else []


def any_known(values: Any) -> bool:
    """Whether the values of a tensor are known to fake tensors, which would forget them: a collective writes them."""
    for value in values:
        if isinstance(value, (list, tuple)):
            if any_known(value):
                return True
        elif isinstance(value, torch.Tensor) and getattr(value, "constant", True) is not None:
            return True
    return False


#: torch's own shape functions of collectives: their first argument and a handle. Fake tensors come to the same after
#: half a millisecond, which they do not remember, for the handle is no tensor.
COLLECTIVES: dict[Any, Callable[..., Any]] = {
    getattr(torch.ops.c10d, name).default: function for name, function in _META_FUNCTIONS.items()
}

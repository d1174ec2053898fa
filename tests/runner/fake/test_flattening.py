"""runner.device.fake.flattening: a gather into a list takes one tensor more, as long as its handle is kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runner.device.fake.collectives import UnderWay, holding
from runner.device.fake.flattening import gathering_flat


class Handle:
    def wait(self) -> str:
        return "done"


def all_gather(tensor_list: list[torch.Tensor], tensor: torch.Tensor, async_op: bool = False) -> Any:
    """Like torch.distributed's: a handle if it was asked for."""
    return Handle() if async_op else None


class Made(TorchDispatchMode):
    """What is made while it is there: shapes, and whether it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[int, ...], torch.dtype, weakref.ref[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.found.append((tuple(made.shape), made.dtype, weakref.ref(made)))
        return made


@pytest.fixture
def made() -> Iterator[Made]:
    with Made() as mode:
        yield mode


PIECES = [torch.zeros(3, 2, dtype=torch.bfloat16) for _ in range(4)]
OTHER = torch.zeros(1, 2)


def test_tensors_of_one_size_are_gathered_into_one_of_all(made: Made) -> None:
    work = gathering_flat(all_gather)(PIECES, PIECES[0], async_op=True)
    ((shape, dtype, alive),) = made.found
    assert (shape, dtype) == ((4, 3, 2), torch.bfloat16)
    assert work.wait() == "done"
    assert alive() is not None  # ProcessGroupNCCL.cpp, outputs_: a wait leaves it
    del work
    assert alive() is None


def test_who_waits_at_once_keeps_nothing(made: Made) -> None:
    assert gathering_flat(all_gather)(PIECES, PIECES[0]) is None
    assert [alive() for _, _, alive in made.found] == [None]


def test_tensors_of_several_sizes_are_broadcast_one_by_one(made: Made) -> None:
    gathering_flat(all_gather)([*PIECES, OTHER], PIECES[0])
    assert made.found == []


@pytest.mark.parametrize("early", [False, True])
def test_the_watchdog_does_not_give_it_back_either(early: bool, made: Made) -> None:
    gather = holding(gathering_flat(all_gather), UnderWay(early=early))
    first = gather(PIECES, PIECES[0], async_op=True)
    second = gather(PIECES, PIECES[0], async_op=True)
    assert [alive() is not None for _, _, alive in made.found] == [True, True]
    del first
    assert [alive() is not None for _, _, alive in made.found] == [False, True]
    del second

"""runner.device.fake.collectives: who waits, and what is held until then."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from runner.device.fake.collectives import UnderWay, holding


class Handle:
    waited = 0

    def wait(self) -> str:
        self.waited += 1
        return "done"

    def is_completed(self) -> bool:
        return self.waited > 0


def gather(output: torch.Tensor, pieces: list[torch.Tensor], async_op: bool = False) -> Any:
    """Like one of torch.distributed: a handle if it was asked for."""
    return Handle() if async_op else None


def test_tensors_live_until_somebody_waits() -> None:
    output, piece = torch.empty(2), torch.empty(1)
    alive = [weakref.ref(output), weakref.ref(piece)]
    work = holding(gather, UnderWay(early=False))(output, [piece], async_op=True)
    del output, piece
    assert all(reference() is not None for reference in alive)
    assert not work.is_completed()
    assert work.wait() == "done"
    assert work.is_completed()
    assert all(reference() is None for reference in alive)


@pytest.mark.parametrize("early", [False, True])
def test_the_next_one_ends_what_those_before_it_hold_where_the_watchdog_is_quick(early: bool) -> None:
    piece = torch.empty(1)
    alive = weakref.ref(piece)
    gathering = holding(gather, UnderWay(early=early))
    first = gathering(torch.empty(2), [piece], async_op=True)
    del piece
    assert alive() is not None
    second = gathering(torch.empty(2), [torch.empty(1)], async_op=True)
    assert (alive() is None) == early
    assert (first.wait(), second.wait()) == ("done", "done")
    assert alive() is None


def test_nothing_is_held_by_a_handle_that_nobody_keeps() -> None:
    piece = torch.empty(1)
    alive = weakref.ref(piece)
    holding(gather, UnderWay(early=False))(torch.empty(2), [piece], async_op=True)
    del piece
    assert alive() is None


def test_what_is_done_at_once_has_no_handle() -> None:
    assert holding(gather, UnderWay(early=False))(torch.empty(2), []) is None
    assert holding(gather, UnderWay(early=False)).__name__ == "gather"

"""Tape: a storage dies with its last holder, gradients add up, and checkpoints run a block twice."""

from __future__ import annotations

import pytest

from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.tape import ALLOC, ENTER, ENTER_BACKWARD, FREE, GRADIENT, LEAVE, LEAVE_BACKWARD, Storage, Tape, Tensor

from .tapes import levels, net

A, B, OUT, GRAD = (Term(name, "", "") for name in ("a", "b", "out", "grad"))


def tape(*, in_place: bool = True, block_bytes: int = 1) -> Tape:
    return Tape(Kernels(block_bytes=block_bytes, accumulates_in_place=in_place))


def terms(t: Tape, kind: int) -> list[str]:
    return [what.name for found, _, what in t.events if found == kind and isinstance(what, Term)]


def scale(t: Tape, x: Tensor, name: str = "scale") -> Tensor:
    """An operator that saves its input; its backward makes a gradient of its parameter, then of its input."""
    kept = t.save(x)
    out = t.tensor(100, OUT)

    def backward(gradient: Storage) -> None:
        t.allocate(7, GRAD)
        t.parameter_gradient(name)
        dx = t.allocate(x.storage.size, GRAD)
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def test_a_storage_lives_until_program_view_and_saved_tensor_have_let_go() -> None:
    t = tape()
    x = t.tensor(10, A)
    view = t.view(x.storage)
    kept = t.save(x)
    for _ in range(2):  # dropping twice is dropping once
        t.drop(x)
    t.drop(view)
    assert terms(t, FREE) == []
    t.forget(kept)
    assert terms(t, FREE) == ["a"]
    t.forget(kept)  # a node runs once
    assert terms(t, FREE) == ["a"]
    assert net(t.events) == 0


def test_every_allocation_is_rounded_to_the_kernels_block() -> None:
    t = tape(block_bytes=512)
    t.temporary(513, A)
    assert [size for _, size, _ in t.events] == [1024, 1024]


def test_without_saving_nothing_is_kept_and_no_node_is_recorded() -> None:
    t = tape()
    t.saving = False
    x = t.tensor(100, A)
    y = scale(t, x)
    t.drop(x)
    assert terms(t, FREE) == ["a"]
    t.drop(y)
    t.run_backward(y, t.allocate(100, GRAD))
    assert GRADIENT not in {kind for kind, _, _ in t.events}


@pytest.mark.parametrize(("in_place", "peak"), [(True, 20), (False, 30)])
def test_a_second_gradient_is_added_to_the_first(in_place: bool, peak: int) -> None:
    t = tape(in_place=in_place)
    x = Tensor(Storage(10, A, silent=True))
    t.give(x, t.allocate(10, GRAD))
    t.give(x, t.allocate(10, GRAD))
    assert levels(t.events) == (10, peak)
    total = t.take_gradient(x)
    assert total is not None
    t.release(total)
    assert net(t.events) == 0
    assert t.take_gradient(x) is None


def test_a_gradient_that_somebody_else_holds_is_not_written_to() -> None:
    t = tape(in_place=True)
    x = Tensor(Storage(10, A, silent=True))
    shared = t.allocate(10, GRAD)
    t.give(x, t.hold(shared))
    t.give(x, t.allocate(10, GRAD))
    assert levels(t.events) == (20, 30)
    t.release(shared)
    assert net(t.events) == 10


def test_backward_runs_last_node_first_and_skips_what_gets_no_gradient() -> None:
    t = tape()
    x = Tensor(Storage(100, A, silent=True))
    first = scale(t, x, "first")
    unused = scale(t, x, "unused")
    second = scale(t, first, "second")
    t.drop(first, unused, second)
    t.run_backward(second, t.allocate(100, GRAD))
    assert [what for kind, _, what in t.events if kind == GRADIENT] == ["second", "first"]


def test_modules_are_hooked_around_their_forward_and_their_backward() -> None:
    t = tape()
    x = Tensor(Storage(100, A, silent=True))
    out = t.module("outer", lambda y: t.module("inner", lambda z: scale(t, z), y), x)
    t.run_backward(out, t.allocate(100, GRAD))
    hooks = [(kind, what) for kind, _, what in t.events if kind in (ENTER, LEAVE, ENTER_BACKWARD, LEAVE_BACKWARD)]
    assert hooks == [
        (ENTER, "outer"),
        (ENTER, "inner"),
        (LEAVE, "inner"),
        (LEAVE, "outer"),
        (ENTER_BACKWARD, "outer"),
        (ENTER_BACKWARD, "inner"),
        (LEAVE_BACKWARD, "inner"),
        (LEAVE_BACKWARD, "outer"),
    ]


def block(t: Tape, x: Tensor) -> Tensor:
    """Two operators that save, and one allocation after the last save."""
    y = scale(t, x, "w1")
    z = scale(t, y, "w2")
    t.drop(y)
    t.temporary(1000, B)
    return z


@pytest.mark.parametrize(("stops_early", "runs"), [(True, 1), (False, 2)])
def test_an_early_stop_does_not_recompute_what_follows_the_last_saved_tensor(stops_early: bool, runs: int) -> None:
    t = tape()
    x = t.tensor(50, A)
    out = t.checkpoint(lambda y: block(t, y), x, stops_early=stops_early)
    t.drop(x)
    assert net(t.events) == 50 + 100  # its input, kept, and its output, held by the program
    turn = len(t.events)
    gradient = t.allocate(100, GRAD)
    t.drop(out)
    t.run_backward(out, gradient)
    # The tail runs forward, and again only without the early stop; so does the block's own output.
    assert terms(t, ALLOC).count("b") == runs
    assert [what.name for kind, _, what in t.events[turn:] if kind == ALLOC and isinstance(what, Term)].count(
        "out"
    ) == runs
    arrived = t.take_gradient(x)
    assert arrived is not None
    t.release(arrived)
    assert net(t.events) == 2 * 7  # the parameters' gradients alone
    assert [what for kind, _, what in t.events if kind == GRADIENT] == ["w2", "w1"]


@pytest.mark.parametrize(("stops_early", "held"), [(True, 0), (False, 100)])
def test_a_reentrant_checkpoint_holds_its_gradient_until_it_returns(stops_early: bool, held: int) -> None:
    t = tape()
    x = Tensor(Storage(50, A, silent=True))
    at_the_end: list[int] = []

    def first_operator(y: Tensor) -> Tensor:
        return t.node(t.tensor(100, OUT), lambda gradient: (t.release(gradient), at_the_end.append(net(t.events)))[0])

    def two(y: Tensor) -> Tensor:
        inner = first_operator(y)
        out = scale(t, inner)
        t.drop(inner)
        return out

    out = t.checkpoint(two, x, stops_early=stops_early)
    gradient = t.allocate(100, GRAD)
    t.drop(out)
    t.run_backward(out, gradient)
    # When the first operator's backward is done, its parameter's gradient is there; a reentrant one's
    # output and incoming gradient are, too.
    assert at_the_end == [7 + (100 if not stops_early else 0) + held]


def test_a_checkpoint_within_a_block_does_not_lose_the_nodes_around_it() -> None:
    t = tape()
    x = Tensor(Storage(50, A, silent=True))
    before = scale(t, x, "before")
    inside = t.checkpoint(lambda y: block(t, y), before, stops_early=True)
    after = scale(t, inside, "after")
    t.drop(before, inside)
    t.drop(after)
    t.run_backward(after, t.allocate(100, GRAD))
    assert [what for kind, _, what in t.events if kind == GRADIENT] == ["after", "w2", "w1", "before"]
    arrived = t.take_gradient(x)
    assert arrived is not None
    t.release(arrived)
    assert net(t.events) == 4 * 7

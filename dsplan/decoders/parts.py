"""Views, parts and copies of tensors: what reading them costs, and where their gradients come back."""

from __future__ import annotations

from collections.abc import Sequence

from dsplan.ledger import Term
from dsplan.operators import BACKWARD
from dsplan.tape import Storage, Tape, Tensor


def size_of(x: Tensor) -> int:
    """Bytes of a tensor: of its storage, unless it is a part of one."""
    return int(getattr(x, "size", x.storage.size))


class Part(Tensor):
    """A part of a tensor: what reads it makes tensors of its own size."""

    __slots__ = ("size",)

    def __init__(self, storage: Storage, size: int) -> None:
        super().__init__(storage)
        self.size = size


def viewed(t: Tape, x: Tensor) -> Tensor:
    """``x`` in another shape: its gradient is a view, to which none is added in place."""

    def backward(gradient: Storage) -> None:
        gradient.is_view = True
        t.give(x, gradient)

    return t.node(t.view(x.storage), backward)


def flat(t: Tape, x: Tensor) -> Tensor:
    """The input of a linear layer whose tokens are one dimension: its gradient is the product's own, and no view."""

    def backward(gradient: Storage) -> None:
        gradient.is_view = False
        t.give(x, gradient)

    return t.node(t.view(x.storage), backward)


def contiguous_gradient(t: Tape, x: Tensor) -> Tensor:
    """A view of the projection's output as heads, whose gradient has to be copied into the projection's order."""

    def backward(gradient: Storage) -> None:
        copy = t.allocate(size_of(x), BACKWARD)
        t.release(gradient)
        t.give(x, copy)

    return t.node(Part(t.hold(x.storage), size_of(x)), backward)


def copied(t: Tape, x: Tensor, term: Term) -> Tensor:
    """``contiguous()``, or ``reshape`` of what cannot be viewed, in the place of ``x``: its gradient is a view."""
    out = t.tensor(size_of(x), term)
    t.node(out, lambda gradient: t.give(x, gradient))
    t.drop(x)
    return out


def expanded(t: Tape, x: Tensor, size: int) -> Part:
    """``expand`` or ``broadcast_to`` over heads, ``size`` bytes if they were there: its gradient is their sum."""
    part = Part(t.hold(x.storage), size)

    def backward(gradient: Storage) -> None:
        summed = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.give(x, summed)

    t.node(part, backward)
    return part


def part_of(t: Tape, x: Tensor, size: int) -> Part:
    """``x[..., a:b]``: its gradient comes back in a tensor of the whole (slice_backward)."""
    part = Part(t.hold(x.storage), size)

    def backward(gradient: Storage) -> None:
        padded = t.allocate(size_of(x), BACKWARD)
        t.release(gradient)
        t.give(x, padded)

    t.node(part, backward)
    return part


def split(t: Tape, whole: Tensor, sizes: Sequence[int]) -> list[Part]:
    """``chunk`` or ``split`` along the last dimension: views, whose gradients are joined once the last is there."""
    gradients: list[Storage] = []

    def last(gradient: Storage) -> None:
        gradients.append(gradient)
        joined = t.allocate(size_of(whole), BACKWARD)
        for each in gradients:
            t.release(each)
        t.give(whole, joined)

    parts = [Part(t.hold(whole.storage), size) for size in sizes]
    t.node(parts[0], last)
    for part in parts[1:]:
        t.node(part, gradients.append)
    return parts


def joined(t: Tape, first: Tensor, second: Tensor, size: int, term: Term) -> Tensor:
    """``cat`` along the last dimension, to ``size`` bytes: views of its gradient go to both."""
    out = t.tensor(size, term)

    def backward(gradient: Storage) -> None:
        t.give(first, t.hold(gradient))
        if size_of(second):
            t.give(second, t.hold(gradient))
        t.release(gradient)

    return t.node(out, backward)

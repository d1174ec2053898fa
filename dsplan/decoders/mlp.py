"""Pieces of MLPs: activations and products."""

from __future__ import annotations

from dsplan.ledger import Term
from dsplan.operators import BACKWARD
from dsplan.tape import Storage, Tape, Tensor

GATED = Term(
    "MLP activations", "e·b·s·f each", "gate, its activation, up and their product: saved by mul and down_proj"
)


def relu(t: Tape, x: Tensor, term: Term) -> Tensor:
    """``relu``: saves its result."""
    out = t.tensor(x.storage.size, term)
    kept = t.save(out)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def multiply(t: Tape, x: Tensor, y: Tensor, term: Term) -> Tensor:
    """``x * y`` of one shape: saves both."""
    kept_x, kept_y = t.save(x), t.save(y)
    out = t.tensor(x.storage.size, term)

    def backward(gradient: Storage) -> None:
        dy = t.allocate(y.storage.size, BACKWARD)
        dx = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.forget(kept_x, kept_y)
        t.give(x, dx)
        t.give(y, dy)

    return t.node(out, backward)


def flat(t: Tape, x: Tensor) -> Tensor:
    """The input of a linear layer whose tokens are one dimension: its gradient is the product's own, and no view."""

    def backward(gradient: Storage) -> None:
        gradient.is_view = False
        t.give(x, gradient)

    return t.node(t.view(x.storage), backward)


def viewed(t: Tape, x: Tensor) -> Tensor:
    """``x`` in another shape: its gradient is a view, to which none is added in place."""

    def backward(gradient: Storage) -> None:
        gradient.is_view = True
        t.give(x, gradient)

    return t.node(t.view(x.storage), backward)


def scaled_by_rows(t: Tape, rows: Tensor, x: Tensor, term: Term) -> Tensor:
    """``rows * x``, a number for each token: saves both; the gradient of ``rows`` is a sum over a product."""
    kept_rows, kept_x = t.save(rows), t.save(x)
    out = t.tensor(x.storage.size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        product = t.allocate(x.storage.size, BACKWARD)
        d_rows = t.allocate(rows.storage.size, BACKWARD)
        t.release(product)
        t.release(gradient)
        t.forget(kept_x, kept_rows)
        t.give(x, dx)
        t.give(rows, d_rows)

    return t.node(out, backward)

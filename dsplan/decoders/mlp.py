"""Pieces of MLPs: activations and products."""

from __future__ import annotations

from dsplan.decoders.parts import Part, size_of
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


def activation_of_part(t: Tape, x: Part, term: Term) -> Tensor:
    """``F.silu`` or ``F.gelu`` of a part of a tensor: saves its input, and with it the whole."""
    kept = t.save(x)
    out = t.tensor(x.size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.size, BACKWARD)
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def multiply(t: Tape, x: Tensor, y: Tensor, term: Term) -> Tensor:
    """``x * y`` of one shape: saves both."""
    size = size_of(x)
    kept_x, kept_y = t.save(x), t.save(y)
    out = t.tensor(size, term)

    def backward(gradient: Storage) -> None:
        dy, dx = t.allocate(size, BACKWARD), t.allocate(size, BACKWARD)
        t.release(gradient)
        t.forget(kept_x, kept_y)
        t.give(x, dx)
        t.give(y, dy)

    return t.node(out, backward)


def scaled_by_rows(t: Tape, rows: Tensor, x: Tensor, term: Term) -> Tensor:
    """``rows * x``, a number for each token: saves both; the gradient of ``rows`` is a sum over a product."""
    kept_rows, kept_x = t.save(rows), t.save(x)
    out = t.tensor(x.storage.size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        product = t.allocate(x.storage.size, BACKWARD)
        if t.recomputed:
            t.forget(kept_x, kept_rows)  # as in dsplan/decoders/norms.py, _weight_gradient
        d_rows = t.allocate(rows.storage.size, BACKWARD)
        t.release(product)
        t.release(gradient)
        t.forget(kept_x, kept_rows)
        t.give(x, dx)
        t.give(rows, d_rows)

    return t.node(out, backward)

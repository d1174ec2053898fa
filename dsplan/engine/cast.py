"""Cast: a conversion between types as an operator on the tape."""

from __future__ import annotations

from dsplan.ledger import Term
from dsplan.operators import BACKWARD
from dsplan.tape import Storage, Tape, Tensor


def cast(t: Tape, x: Tensor, size: int, term: Term) -> Tensor:
    """``x.to(dtype)`` into ``size`` bytes: keeps nothing, and casts the gradient back."""
    out = t.tensor(size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.give(x, dx)

    return t.node(out, backward)

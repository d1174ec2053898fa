"""Linear layers of which the weight is not trained, or the input needs no gradient (derivatives.yaml addmm, mm)."""

from __future__ import annotations

from dsplan.ledger import Term
from dsplan.operators import BACKWARD, PARAMETER_GRADIENT
from dsplan.tape import PRODUCT, Storage, Tape, Tensor


def frozen_linear(t: Tape, x: Tensor, size: int, term: Term, name: str, *, own: bool) -> Tensor:
    """Saves the weight alone, which is there anyway, but counts where a second run ends.

    Backward makes the gradient of the input. ``own``: it is stage 3's own function, which saves its input too, whatever
    is asked of it (deepspeed/runtime/zero/linear.py).
    """
    kept = t.save(x if own else Tensor(Storage(0, term, silent=True)))
    out = t.tensor(size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        t.mark(PRODUCT, name)
        dx.is_view = not own
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def first_linear(t: Tape, x: Tensor, size: int, term: Term, name: str, weight_bytes: int, bias_bytes: int) -> Tensor:
    """A trained layer of an input that needs no gradient: saves the input, and makes its own gradients alone."""
    kept = t.save(x)
    out = t.tensor(size, term)

    def backward(gradient: Storage) -> None:
        t.allocate(weight_bytes, PARAMETER_GRADIENT)
        t.mark(PRODUCT, name)
        if bias_bytes:
            t.allocate(bias_bytes, PARAMETER_GRADIENT)
        t.release(gradient)
        t.forget(kept)
        if bias_bytes:
            t.parameter_gradient(f"{name}.bias")
        t.parameter_gradient(f"{name}.weight")

    return t.node(out, backward)


def scaled(t: Tape, x: Tensor, term: Term) -> Tensor:
    """``x * scaling``: saves nothing."""
    out = t.tensor(x.storage.size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.give(x, dx)

    return t.node(out, backward)

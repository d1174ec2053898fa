"""Stage 3's own linear layer under autocast: it saves what it is given, and casts anew in each direction.

Source: DeepSpeed 0.19.8 runtime/zero/linear.py (LinearFunctionForZeroStage3); torch's aten/src/ATen/autocast_mode.cpp
(cached_cast) and torch/csrc/autograd/engine.cpp (validate_outputs).
"""

from __future__ import annotations

from dsplan import operators
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, PARAMETER_GRADIENT, WORKING
from dsplan.tape import PRODUCT, Storage, Tape, Tensor

FULL = 4  # bytes of an fp32 element


def own_linear(  # an operator's natural argument order
    t: Tape,
    x: Tensor,
    name: str,
    size: int,
    half: int,
    e: int,
    weights: int,
    biases: int,
    term: Term,
    *,
    tied: bool,
    forgets_early: bool,
) -> Tensor:
    """``input.matmul(weight.t())``, then the bias in place.

    The transposed weight is no leaf, so its cast is not kept; in the backward pass the weight itself is cast, and that
    cast is kept until the function's own autocast ends. Sizes in bytes but ``weights`` and ``biases``, in elements;
    ``half``: the input in autocast's type of ``e`` bytes; ``biases`` 0 means none. ``forgets_early``: the saved input
    goes before the gradients are cast to their tensors' types.
    """
    casts = x.storage.size != t.kernels.rounded(half)
    kept = t.save(x)
    temporaries = [t.allocate(half, WORKING)] if casts else []
    temporaries.append(t.allocate(e * weights, WORKING))
    out = t.tensor(size, term)
    for each in temporaries:
        t.release(each)

    def backward(gradient: Storage) -> None:
        half_weight = t.allocate(e * weights, BACKWARD)
        t.mark(PRODUCT, name)
        dx = t.allocate(half, BACKWARD)
        half_input = t.allocate(half, BACKWARD) if casts else None
        d_half_weight = t.allocate(e * weights, BACKWARD)
        if half_input is not None:
            t.release(half_input)
        if biases:
            operators.bias_gradient(t, size // (e * biases), biases, e, wide=True)  # a sum is fp32
        t.release(half_weight)
        t.release(gradient)
        if forgets_early:
            t.forget(kept)
            if biases:  # stage 3 lets go of the saved weight with its module's first gradient
                t.parameter_gradient(f"{name}.bias")
        if casts:
            d_half, dx = dx, t.allocate(x.storage.size, BACKWARD)
            t.release(d_half)
        t.allocate(FULL * weights, PARAMETER_GRADIENT)
        t.release(d_half_weight)
        t.forget(kept)
        if not tied:
            t.parameter_gradient(f"{name}.weight")
        if biases and not forgets_early:
            t.parameter_gradient(f"{name}.bias")
        t.give(x, dx)

    return t.node(out, backward)

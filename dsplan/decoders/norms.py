"""RMSNorm as transformers writes it, in elementary operators. (LayerNorm is one kernel: ``dsplan.operators``.)

Legend: e bytes of an element, b·s tokens, h width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsplan.ledger import Term
from dsplan.operators import BACKWARD, PARAMETER_GRADIENT, WORKING, bias_gradient
from dsplan.tape import Saved, Storage, Tape, Tensor

UPCAST = Term(
    "RMSNorm inputs in fp32", "4·b·s·h each", "modeling_llama.py LlamaRMSNorm.forward: hidden_states.to(float32)"
)
SCALED = Term("RMSNorm outputs before their weight", "e·b·s·h each", "saved by weight · x; derivatives.yaml mul")
ROOTS = Term("RMSNorm 1/rms", "4·b·s each", "saved by rsqrt and by x · rsqrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormShape:
    """One norm: rows of ``width`` elements, ``rows`` of them, of ``element_bytes`` each."""

    rows: int
    width: int
    element_bytes: int

    @property
    def size(self) -> int:
        """Bytes in the model's type: e·rows·width."""
        return self.element_bytes * self.rows * self.width

    @property
    def upcast(self) -> int:
        """Bytes in fp32: 4·rows·width."""
        return 4 * self.rows * self.width


def rms_norm(t: Tape, x: Tensor, shape: NormShape, name: str, term: Term, *, trained: bool = True) -> Tensor:
    """``weight * (x.float() * rsqrt(mean(x²) + eps)).to(x.dtype)`` (modeling_llama.py LlamaRMSNorm.forward).

    ``trained``: the weight is; else what it multiplies is not saved.
    """
    casts = shape.element_bytes != 4
    wide = t.tensor(shape.upcast, UPCAST) if casts else t.view(x.storage)
    kept_wide = [t.save(wide), t.save(wide)]  # pow, and the product with rsqrt
    roots, kept_roots, after = _rsqrt_of_mean(t, shape)
    middle = t.tensor(shape.upcast, WORKING if casts else SCALED)
    kept_roots.append(t.save(roots))
    t.drop(wide, roots)  # the product has its name from here on
    scaled = t.tensor(shape.size, SCALED) if casts else t.view(middle.storage)
    kept_scaled = [t.save(scaled)] if trained else []
    out = t.tensor(shape.size, term)
    t.drop(scaled, middle, *after)

    def backward(gradient: Storage) -> None:
        d_scaled = t.allocate(shape.size, BACKWARD)
        if trained:
            _weight_gradient(t, shape, kept_scaled)
        t.release(gradient)
        t.forget(*kept_scaled)
        if trained:
            t.parameter_gradient(f"{name}.weight")
        if casts:
            d_middle = t.allocate(shape.upcast, BACKWARD)
            t.release(d_scaled)
        else:
            d_middle = d_scaled
        _backward_of_scaling(t, x, shape, d_middle, kept_wide, kept_roots, casts=casts)

    return t.node(out, backward)


def _weight_gradient(t: Tape, shape: NormShape, kept: Sequence[Saved]) -> None:
    """The gradient of ``weight`` in ``weight * x``: a product, summed over the rows; the engine gets it later.

    The sum comes after the product's own function (torch/csrc/autograd/engine.cpp, validate_outputs): what of ``kept``
    torch's checkpoint has recomputed is gone by then (torch/utils/checkpoint.py, unpack_hook).
    """
    product = t.allocate(shape.size, BACKWARD)
    if t.recomputed:
        t.forget(*kept)
    bias_gradient(t, shape.rows, shape.width, shape.element_bytes)
    t.release(product)


def rms_norm_plus_one(t: Tape, x: Tensor, shape: NormShape, name: str, term: Term, *, trained: bool = True) -> Tensor:
    """``((x.float() * rsqrt(mean(x²) + eps)) * (1 + weight.float())).type_as(x)`` (modeling_gemma.py GemmaRMSNorm).

    ``trained``: as of :func:`rms_norm`.
    """
    casts = shape.element_bytes != 4
    wide = t.tensor(shape.upcast, UPCAST) if casts else t.view(x.storage)
    kept_wide = [t.save(wide), t.save(wide)]
    roots, kept_roots, after = _rsqrt_of_mean(t, shape)
    middle = t.tensor(shape.upcast, UPCAST)
    kept_roots.append(t.save(roots))
    t.drop(wide, roots, *after)
    weight = t.tensor(4 * shape.width, WORKING) if casts else None
    one_plus = t.tensor(4 * shape.width, ROOTS)
    if weight is not None:
        t.drop(weight)
    kept = [t.save(one_plus), *([t.save(middle)] if trained else [])]
    product = t.tensor(shape.upcast, WORKING if casts else term)
    t.drop(one_plus, middle)
    out = t.tensor(shape.size, term) if casts else t.view(product.storage)
    t.drop(product)

    def backward(gradient: Storage) -> None:
        if casts:
            d_product = t.allocate(shape.upcast, BACKWARD)
            t.release(gradient)
        else:
            d_product = gradient
        d_weight = None
        if trained:  # the weight is the second of the product's operands, whose gradient is made first
            product, d_middle = t.allocate(shape.upcast, BACKWARD), t.allocate(shape.upcast, BACKWARD)
            d_weight = _wide_weight_gradient(t, shape, kept, product, casts=casts)
        else:
            d_middle = t.allocate(shape.upcast, BACKWARD)
        t.release(d_product)
        t.forget(*kept)
        if d_weight is not None:
            _hand_over_weight_gradient(t, shape, name, d_weight, casts=casts)
        _backward_of_scaling(t, x, shape, d_middle, kept_wide, kept_roots, casts=casts)

    return t.node(out, backward)


def _wide_weight_gradient(
    t: Tape, shape: NormShape, kept: Sequence[Saved], product: Storage, *, casts: bool
) -> Storage:
    """As :func:`_weight_gradient`, in fp32, of a ``product`` that is there."""
    if t.recomputed:
        t.forget(*kept)
    d_weight = bias_gradient(t, shape.rows, shape.width, 4, term=BACKWARD if casts else PARAMETER_GRADIENT)
    t.release(product)
    return d_weight


def _hand_over_weight_gradient(t: Tape, shape: NormShape, name: str, d_weight: Storage, *, casts: bool) -> None:
    if casts:
        t.allocate(shape.element_bytes * shape.width, PARAMETER_GRADIENT)
        t.release(d_weight)
    t.parameter_gradient(f"{name}.weight")


def norm_of_constant(t: Tape, x: Tensor, shape: NormShape, name: str, term: Term, *, plus_one: bool) -> Tensor:
    """A norm whose weight is trained and whose input needs no gradient: saves what the weight multiplies alone."""
    casts = shape.element_bytes != 4
    saving, t.saving = t.saving, False
    wide = t.tensor(shape.upcast, UPCAST) if casts else t.view(x.storage)
    roots, _, after = _rsqrt_of_mean(t, shape)
    multiplied = t.tensor(shape.upcast, UPCAST if plus_one else WORKING)
    t.drop(wide, roots, *after)
    if casts and not plus_one:
        middle, multiplied = multiplied, t.tensor(shape.size, SCALED)
        t.drop(middle)
    t.saving = saving
    kept = t.save(multiplied)
    if casts and plus_one:
        product = t.tensor(shape.upcast, WORKING)
        out = t.tensor(shape.size, term)
        t.drop(product)
    else:
        out = t.tensor(shape.size, term)
    t.drop(multiplied)

    def backward(gradient: Storage) -> None:
        if not plus_one:
            _weight_gradient(t, shape, [kept])
            t.release(gradient)
            t.forget(kept)
            t.parameter_gradient(f"{name}.weight")
            return
        d_product = gradient
        if casts:
            d_product = t.allocate(shape.upcast, BACKWARD)
            t.release(gradient)
        d_weight = _wide_weight_gradient(t, shape, [kept], t.allocate(shape.upcast, BACKWARD), casts=casts)
        t.release(d_product)
        t.forget(kept)
        _hand_over_weight_gradient(t, shape, name, d_weight, casts=casts)

    return t.node(out, backward)


def _rsqrt_of_mean(t: Tape, shape: NormShape) -> tuple[Tensor, list[Saved], list[Tensor]]:
    """1/rms of every row, what is saved of it, and the mean, which its name keeps alive (``variance``)."""
    square = t.tensor(shape.upcast, WORKING)
    mean = t.tensor(4 * shape.rows, WORKING)
    t.drop(square)
    shifted = t.tensor(4 * shape.rows, WORKING)
    roots = t.tensor(4 * shape.rows, ROOTS)
    kept = [t.save(roots)]
    t.drop(shifted)
    return roots, kept, [mean]


def _backward_of_scaling(  # the pieces of one node's state
    t: Tape,
    x: Tensor,
    shape: NormShape,
    d_middle: Storage,
    kept_wide: list[Saved],
    kept_roots: list[Saved],
    *,
    casts: bool,
) -> None:
    """From the gradient of ``x · rsqrt(mean(x²) + eps)`` to that of x: both uses of x, through fp32."""
    row = 4 * shape.rows
    d_roots_wide = t.allocate(shape.upcast, BACKWARD)
    first = t.allocate(shape.upcast, BACKWARD)
    d_roots = t.allocate(row, BACKWARD)
    t.release(d_roots_wide)
    t.release(d_middle)
    if not casts:
        t.give(x, first)
    cube, scaled, d_mean = (t.allocate(row, BACKWARD) for _ in range(3))
    t.release(scaled)
    t.release(cube)
    t.release(d_roots)
    t.forget(*kept_roots)
    d_square = t.allocate(shape.upcast, BACKWARD)
    t.release(d_mean)
    # pow_backward: grad · (2 · x¹), each product a tensor.
    power = t.allocate(shape.upcast, BACKWARD)
    twice = t.allocate(shape.upcast, BACKWARD)
    second = t.allocate(shape.upcast, BACKWARD)
    t.release(twice)
    t.release(power)
    t.release(d_square)
    t.forget(*kept_wide)
    if not casts:
        t.give(x, second)
        return
    if t.kernels.accumulates_in_place:
        t.release(second)
        total = first
    else:
        total = t.allocate(shape.upcast, BACKWARD)
        t.release(first)
        t.release(second)
    dx = t.allocate(shape.size, BACKWARD)
    t.release(total)
    t.give(x, dx)

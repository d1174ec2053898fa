"""Muon's update of one matrix: the tensors that its lines make, and what stays of them.

torch.compile makes the update of DeepSpeed; here it is taken line by line, as a dry run does (docs/dry-run.md says what
inductor saves).

Source: DeepSpeed 0.19.8 runtime/zero/muon/original_muon.py (muon_update, zeropower_via_gram_newtonschulz,
ns_compute_dtype); names of tensors are that file's.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from dsplan import states
from dsplan.kernels import Kernels
from dsplan.ledger import Ledger
from dsplan.workload import PRECISION_BYTES

#: muon_update: iterations of Newton and Schulz, and the one before which the Gram method starts anew.
STEPS, RESTART_AT = 5, 2


class _Lines:
    """Tensors in the order in which lines of Python make and drop them; each is known by its bytes alone."""

    def __init__(self) -> None:
        self.changes: list[int] = []

    def new(self, size: int) -> int:
        self.changes.append(size)
        return size

    def drop(self, *sizes: int) -> None:
        self.changes += [-size for size in sizes if size]

    def instead_of(self, old: int, new: int) -> int:
        """A name that held ``old`` gets ``new``, which is there already."""
        self.drop(old)
        return new

    def polynomial(self, size: int) -> int:
        """``b * A + c * A @ A`` of a square A of ``size`` bytes."""
        scaled, factor = self.new(size), self.new(size)
        product = self.new(size)
        self.drop(factor)
        found = self.new(size)
        self.drop(scaled, product)
        return found

    def combination(self, size: int) -> int:
        """``a * X + B @ X`` of an X of ``size`` bytes."""
        scaled, product = self.new(size), self.new(size)
        found = self.new(size)
        self.drop(scaled, product)
        return found


@lru_cache(maxsize=256)
def update_changes(shape: tuple[int, ...], precision: str, half: str) -> tuple[int, ...]:
    """What ``muon_update`` makes (bytes) and drops (-bytes) in its order; at its end the update is left.

    Args:
        shape: of the gradient: a matrix, or several (experts) along the first dimension.
        precision: of the gradient and its momentum.
        half: in which the iterations run: fp16, or fp32 where the device has none (ns_compute_dtype).
    """
    t = _Lines()
    numel = prod(shape)
    size = PRECISION_BYTES[precision] * numel
    # torch.isfinite: (x == x) * (x.abs() != inf), then all()
    same, absolute, below, finite = t.new(numel), t.new(size), t.new(numel), t.new(numel)
    t.drop(below, absolute, same)
    flag = t.new(1)
    t.drop(finite)
    moved, kept = t.new(size), t.new(size)  # momentum.lerp, torch.where
    t.drop(moved, kept)
    update = _orthogonalized(t, shape, precision, half)
    if precision != half:
        update = t.instead_of(update, t.new(size))
    t.new(size)  # torch.where, which is returned
    t.drop(update, flag)
    return tuple(t.changes)


def _orthogonalized(t: _Lines, shape: tuple[int, ...], precision: str, half: str) -> int:
    """zeropower_via_gram_newtonschulz; returns the bytes of the result."""
    numel, batch = prod(shape), prod(shape[:-2])
    n = min(shape[-2:])
    normed = "fp32" if precision == "fp16" else precision
    x = t.new(4 * numel) if normed != precision else 0
    length = t.new(PRECISION_BYTES[normed] * batch)
    length = t.instead_of(length, t.new(length))  # + 1e-7
    divided = t.new(PRECISION_BYTES[normed] * numel)
    t.drop(length)
    if normed != half:
        divided = t.instead_of(divided, t.new(PRECISION_BYTES[half] * numel))
    t.drop(x)
    x, square = divided, PRECISION_BYTES[half] * batch * n * n
    return _standard(t, x, square) if shape[-2] == shape[-1] else _gram(t, x, square)


def _standard(t: _Lines, x: int, square: int) -> int:
    """The iterations of a square matrix."""
    a = b = 0
    for _ in range(STEPS):
        a = t.instead_of(a, t.new(square))
        b = t.instead_of(b, t.polynomial(square))
        x = t.instead_of(x, t.combination(x))
    t.drop(a, b)
    return x


def _gram(t: _Lines, x: int, square: int) -> int:
    """The iterations on R = X Xᵀ of a matrix that is not square."""
    r, z, q, rz = t.new(square), 0, 0, 0
    for i in range(STEPS):
        if i == RESTART_AT:
            x = t.instead_of(x, t.new(x))
            r = t.instead_of(r, t.new(square))
            t.drop(q)
            q = 0
        z = t.instead_of(z, t.polynomial(square))
        q = t.instead_of(q, t.combination(square)) if q else t.new(square)
        if i < STEPS - 1 and i + 1 != RESTART_AT:
            rz = t.instead_of(rz, t.combination(square))
            r = t.instead_of(r, t.combination(square))
    result = t.new(x)
    t.drop(x, r, z, q, rz)
    return result


def half_of(kernels: Kernels) -> str:
    """ns_compute_dtype: fp16 but on the CPU, which DeepSpeed takes to have none (accelerator/cpu_accelerator.py)."""
    return "fp32" if kernels.one_pool else "fp16"


def take_update(ledger: Ledger, shape: tuple[int, ...], precision: str) -> None:
    """One call of ``muon_update``: its temporaries, and the update that it returns, a term of its own."""
    changes = update_changes(shape, precision, half_of(ledger.kernels))
    if ledger.detailed:
        for change in changes[: _returned(changes)]:
            _change(ledger, change)
        ledger.alloc(states.MUON_UPDATES, PRECISION_BYTES[precision] * prod(shape))
        for change in changes[_returned(changes) + 1 :]:
            _change(ledger, change)
    else:
        ledger.rise_and_settle(*_height(changes, ledger.kernels))


def _change(ledger: Ledger, change: int) -> None:
    if change > 0:
        ledger.alloc(states.NEWTON_SCHULZ, change)
    else:
        ledger.free(states.NEWTON_SCHULZ, -change)


def _returned(changes: tuple[int, ...]) -> int:
    """Where the update is made: the last tensor of all."""
    return max(place for place, change in enumerate(changes) if change > 0)


@lru_cache(maxsize=1024)
def _height(changes: tuple[int, ...], kernels: Kernels) -> tuple[int, int]:
    """(rise, net) of the changes in bytes of the device."""
    level = rise = 0
    for change in changes:
        level += kernels.rounded(change) if change > 0 else -kernels.rounded(-change)
        rise = max(rise, level)
    return rise, level

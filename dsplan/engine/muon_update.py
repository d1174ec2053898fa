"""Muon's update of one matrix: the tensors that its lines make, and what stays of them.

DeepSpeed has torch.compile make the update: on an accelerator it takes the buffers of ``muon_compiled``. On the CPU it
is taken line by line, as a dry run does.

Source: DeepSpeed 0.19.8 runtime/zero/muon/original_muon.py (muon_update, zeropower_via_gram_newtonschulz,
ns_compute_dtype); names of tensors are that file's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod

from dsplan import states
from dsplan.engine.muon_compiled import CACHE_BYTES, Codes, Timed, compiled_changes, on_device, timed_parts
from dsplan.kernels import Kernels
from dsplan.ledger import PINNED, Ledger, Term
from dsplan.workload import PRECISION_BYTES

HOST_COPIES = Term(
    "gradients and momentum of Muon's matrices (host), copied while kernels are timed",
    "g·n each, where the device has no room",
    "torch/_inductor/runtime/triton_heuristics.py copy_args_to_cpu_if_needed",
    PINNED,
)

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


class Updates:
    """The updates of one rank, in their order.

    On an accelerator their code is compiled and, when it is new, timed; on the CPU they are taken line by line. The
    iterations run in fp16, on the CPU in fp32, for DeepSpeed takes it to have no fp16 (ns_compute_dtype;
    accelerator/cpu_accelerator.py).
    """

    def __init__(self) -> None:
        self._codes = Codes()

    def repeat(self, ledger: Ledger, shapes: Iterable[tuple[int, ...]]) -> bool:
        """Whether the updates of ``shapes`` only come to what they came to before: no code is new, and nobody asks for
        their tensors one by one."""
        return not ledger.detailed and (ledger.kernels.one_pool or all(map(self._codes.have_met, shapes)))

    def take(self, ledger: Ledger, shape: tuple[int, ...], precision: str) -> None:
        """One call of ``muon_update``: its temporaries, and the update that it returns, a term of its own."""
        if ledger.kernels.one_pool:
            _take(ledger, update_changes(shape, precision, "fp32"))
        elif self._codes.are_new(shape):
            parts = timed_parts(shape, precision, "fp16", exact=self._codes.exact)
            _take_all(ledger, compiled_changes(shape, precision, "fp16"), {part.place: part for part in parts})
        else:
            _take(ledger, compiled_changes(shape, precision, "fp16"))


def _take(ledger: Ledger, changes: tuple[int, ...]) -> None:
    if ledger.detailed:
        _take_all(ledger, changes, {})
    else:
        ledger.rise_and_settle(*_height(changes, ledger.kernels))


def _take_all(ledger: Ledger, changes: tuple[int, ...], timed: Mapping[int, Timed]) -> None:
    update = _returned(changes)
    for place, change in enumerate(changes):
        if place in timed:
            _time(ledger, timed[place])
        if change < 0:
            ledger.free(states.NEWTON_SCHULZ, -change)
        else:
            ledger.alloc(states.MUON_UPDATES if place == update else states.NEWTON_SCHULZ, change)


def _time(ledger: Ledger, part: Timed) -> None:
    """Copies of what is written over, on the device or in page-locked memory, and what empties the cache."""
    room = 0 if part.anyway else ledger.room(sum(part.copies))
    copied, on_host = on_device(part, room), list(part.copies)
    for size in copied:
        on_host.remove(size)
    ledger.alloc_many(HOST_COPIES, on_host)
    for size in (CACHE_BYTES, *copied):
        ledger.alloc(states.NEWTON_SCHULZ, size)
    for size in (CACHE_BYTES, *copied):
        ledger.free(states.NEWTON_SCHULZ, size)
    ledger.free_many(HOST_COPIES, on_host)


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

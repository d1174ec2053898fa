"""Muon's update of one matrix as inductor compiles it: the buffers that its code takes and gives back, in their order.

Where DeepSpeed's lines make a tensor, inductor's code writes over a buffer of the same size that nobody reads any more,
and sums and products between matrix products are one kernel each. What is left was recorded on an H200 (torch 2.11;
tests/data/muon_requests.json): for every matrix that is not square the same sequence, whatever its dtype, which way it
lies and whether its shape was compiled for or is a symbol; for a square one another. Left out are partial sums of a few
KiB before the first buffer.

Code that is new is timed, kernel by kernel, unless its choices are on the disk from an earlier run: with a buffer that
empties the L2 cache, and on copies of what a kernel writes over. A copy is made on the device if the highest level so
far has room for it, and in page-locked host memory if not.

Source: DeepSpeed 0.19.8 runtime/zero/muon/original_muon.py (muon_update, which torch.compile takes); torch
torch/_inductor/codegen/wrapper.py (buffers and their reuse), runtime/benchmarking.py (benchmark_gpu),
runtime/triton_heuristics.py (copy_args_to_cpu_if_needed, maybe_clone_args), torch/_dynamo/variables/builder.py
(automatic dynamic shapes).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from dsplan.units import MIB
from dsplan.workload import PRECISION_BYTES

#: Squares of the iteration of a matrix that is not square, and how many of them are there before X is multiplied; of
#: several matrices in fp32.
_SQUARES, _BEFORE = 6, 5
_SQUARES_OF_EXPERTS, _BEFORE_OF_EXPERTS = 8, 7
#: Squares, X and what replaces it among them, of the iteration of a square matrix: by width of the gradient's dtype.
_OF_SQUARE = {2: 6, 4: 7}
#: Where in the sequence X is taken, in which the iterations run; what is taken next is its first product.
X = 2
#: bool: whether the gradient is finite; fp32: its norm.
_FLAG, _NORM = 1, 4
#: What empties the L2 cache of an H200 (torch's L2_cache_size of it); other cards have another.
CACHE_BYTES = 60 * MIB
#: Elements of fp16 (pad_mm.py, get_alignment_size).
_ALIGNED = 8
#: Resident memory of a rank's process once the update is compiled, as ``dsplan.overhead.PROCESS_HOST_BYTES`` without.
#: Measured: H200, torch 2.11, DeepSpeed 0.19.8, stages 0 to 3 on one and two ranks: 1888 to 2140 MiB in 13 processes,
#: of which this is the median.
PROCESS_BYTES = 2056 * MIB
#: The last kernel writes gradient and momentum, each by two of its arguments.
COPIES = 4


@lru_cache(maxsize=256)
def compiled_changes(shape: tuple[int, ...], precision: str, half: str) -> tuple[int, ...]:
    """What the compiled ``muon_update`` takes (bytes) and gives back (-bytes); at its end the update is left, which was
    taken last.

    Of a gradient in ``half`` the code returns X instead, which is not above what these come to.

    Args:
        shape: of the gradient: a matrix, or several (experts) along the first dimension.
        precision: of the gradient and its momentum.
        half: in which the iterations run (ns_compute_dtype).
    """
    width, numel, n = PRECISION_BYTES[precision], prod(shape), min(shape[-2:])
    result, x = width * numel, PRECISION_BYTES[half] * numel
    square = PRECISION_BYTES[half] * prod(shape[:-2]) * n * n
    norm = _NORM * prod(shape[:-2])
    if shape[-2] == shape[-1]:
        others = _OF_SQUARE[width] - 2
        iterated = (square, -norm, *[square] * others, *[-square] * others)
        return (_FLAG, norm, x, *iterated, result, -_FLAG, -square, -x)
    experts = len(shape) > 2 and width > PRECISION_BYTES[half]
    squares, before = (_SQUARES_OF_EXPERTS, _BEFORE_OF_EXPERTS) if experts else (_SQUARES, _BEFORE)
    iterated = (*[square] * before, x, *[square] * (squares - before), *[-square] * (squares - 1), -x, -square)
    return (_FLAG, norm, x, -norm, *iterated, result, -_FLAG, -x)


class Timed(NamedTuple):
    """What is timed: after how many of the changes, and bytes of each tensor that is made for it; ``anyway``: on the
    device even if that is higher than ever."""

    place: int
    copies: tuple[int, ...]
    anyway: bool = False


@lru_cache(maxsize=256)
def timed_parts(shape: tuple[int, ...], precision: str, half: str, *, exact: bool) -> tuple[Timed, ...]:
    """Of new code those parts whose timing takes most: a kernel that writes over an X, and the last, which writes over
    gradient and momentum. Before them, of code for this shape alone (``exact``) with a side that is no multiple of
    eight, a product of two X, as it is and padded (torch/_inductor/fx_passes/pad_mm.py)."""
    changes = compiled_changes(shape, precision, half)
    last = max(place for place, change in enumerate(changes) if change > 0)
    x, square = changes[X], PRECISION_BYTES[half] * prod(shape[:-2]) * min(shape[-2:]) ** 2
    earlier = changes.index(-x) if shape[-2] != shape[-1] else last
    kernels = Timed(earlier, (x,)), Timed(last + 1, (PRECISION_BYTES[precision] * prod(shape),) * COPIES)
    if exact and any(side % _ALIGNED for side in shape[-2:]):
        return (Timed(0, (x, x, x, x, square), anyway=True), *kernels)
    return kernels


def on_device(part: Timed, room: int) -> tuple[int, ...]:
    """Those of the copies that are made on the device, whose highest level so far leaves ``room`` bytes."""
    found = []
    for size in part.copies:
        if part.anyway or size <= room:
            found.append(size)
            room -= size
    return tuple(found)


class Codes:
    """For which shapes of gradients there is code: torch compiles for the first shape, and where a size differs from
    those before it for any; rows above, below or as many as columns have code of their own.

    Attributes:
        exact: whether the code that was new last is for its shape alone.
    """

    def __init__(self) -> None:
        self._codes: list[tuple[int, tuple[int | None, ...]]] = []
        self._sizes: dict[int, tuple[int | None, ...]] = {}
        self._met: set[tuple[int, ...]] = set()
        self.exact = False

    def have_met(self, shape: tuple[int, ...]) -> bool:
        """Whether the code for ``shape`` has been asked for before, and so is there."""
        return shape in self._met

    def are_new(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` has none yet; from now on it has."""
        if shape in self._met:
            return False
        self._met.add(shape)
        way = (shape[-2] > shape[-1]) - (shape[-2] < shape[-1])
        if any(way == one and _fits(sizes, shape) for one, sizes in self._codes):
            return False
        known = self._sizes.get(len(shape), shape)
        sizes = tuple([size if size == now else None for size, now in zip(known, shape, strict=True)])
        self._sizes[len(shape)] = sizes
        self._codes.append((way, sizes))
        self.exact = None not in sizes
        return True


def _fits(sizes: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(sizes) == len(shape) and all(size in (None, now) for size, now in zip(sizes, shape, strict=True))

"""Pressure: a trace through the replay of torch's allocator, with as much of the device as there is.

Under pressure the allocator gives back every segment that is wholly free and asks again
(c10/cuda/CUDACachingAllocator.cpp, ``release_cached_blocks``), so a run dies of the segments that are partly in use.
Which these are, only the replay knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsplan.allocator import AllocatorSettings, Block, CachingAllocator, OutOfDeviceMemory, SegmentState
from dsplan.allocator.placement import RisingPlacement
from dsplan.units import MIB
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Trace

DEFAULT = AllocatorSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trace ended.

    Attributes:
        died_at: the operation that got no memory; None: it went through.
        allocated_bytes: the peak; of a run that died, what was allocated then.
        reserved_bytes: likewise what the allocator held of the device.
        segment_bytes: what it asked the device for when it died; 0 otherwise.
        num_retries: how often it gave back its cache and asked again.
    """

    died_at: int | None
    allocated_bytes: int
    reserved_bytes: int
    segment_bytes: int = 0
    num_retries: int = 0

    @property
    def lived(self) -> bool:
        return self.died_at is None


def replay(
    trace: Trace,
    capacity_bytes: int | None = None,
    settings: AllocatorSettings = DEFAULT,
    *,
    rising: bool = False,
) -> Outcome:
    """The trace on a device that has ``capacity_bytes`` for the allocator; None: as much as is asked for.

    ``rising``: segments lie each above the one before, not as the driver places them in an empty address space; which
    of two blocks of one size is taken then turns round. Expandable segments have an order of their own.
    """
    allocator = CachingAllocator(settings=settings, capacity_bytes=capacity_bytes)
    if rising and not settings.expandable_segments:
        allocator.set_placement(RisingPlacement())
    blocks: list[Block | None] = [None] * len(trace.operations)
    begin = 0
    for end in ends_until_repeated(trace, allocator):
        died = _operate(allocator, trace.operations, blocks, begin, end)
        if died is not None:
            number, full = died
            return Outcome(
                died_at=number,
                allocated_bytes=allocator.allocated_bytes,
                reserved_bytes=allocator.reserved_bytes,
                segment_bytes=full.segment,
                num_retries=allocator.num_alloc_retries,
            )
        begin = end
    return Outcome(
        died_at=None,
        allocated_bytes=allocator.peak_allocated_bytes,
        reserved_bytes=allocator.peak_reserved_bytes,
        num_retries=allocator.num_alloc_retries,
    )


def ends_until_repeated(trace: Trace, allocator: CachingAllocator) -> Iterator[int]:
    """Where initialisation and steps end, until the next step asks for the same of what it finds as the one before it.

    ``allocator`` has come as far as the end that was given last.
    """
    before: list[SegmentState] = []
    ends = [*trace.steps, len(trace.operations)]
    for step, end in enumerate(ends, start=-1):  # -1 is the initialisation
        yield end
        if step >= trace.repeats_from and end < ends[-1]:
            now = allocator.snapshot()
            if now == before:
                return
            before = now


def _operate(
    allocator: CachingAllocator, operations: list[tuple[int, int]], blocks: list[Block | None], begin: int, end: int
) -> tuple[int, OutOfDeviceMemory] | None:
    """Operations from ``begin`` to ``end``; the one that got no memory and what was said, or None."""
    allocate, free = allocator.allocate, allocator.free
    number = begin
    try:
        for number in range(begin, end):
            size, other = operations[number]
            if size >= 0:
                blocks[number] = allocate(size, other)
            elif size == RELEASE:
                block = blocks[other]
                assert block is not None
                free(block)
            elif size == EMPTY_CACHE:
                allocator.empty_cache()
    except OutOfDeviceMemory as full:
        return number, full
    return None


def least(
    trace: Trace,
    *,
    dies_bytes: int,
    lives_bytes: int,
    settings: AllocatorSettings = DEFAULT,
    within: int = 16 * MIB,
    rising: bool = False,
) -> int:
    """The least capacity that the trace lives with, in bytes, found to ``within``.

    Args:
        dies_bytes: a capacity that is too little, such as the peak of what is allocated.
        lives_bytes: one that is enough, such as what an idle device would reserve.
    """
    low, high = dies_bytes, lives_bytes
    while high - low > within:
        middle = (low + high) // 2
        if replay(trace, middle, settings, rising=rising).lived:
            high = middle
        else:
            low = middle
    return high

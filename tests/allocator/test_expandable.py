"""Expandable segments, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from dsplan.allocator import CachingAllocator, OutOfDeviceMemory, parse_settings
from dsplan.units import MIB


def expandable(**limits: int) -> CachingAllocator:
    return CachingAllocator(settings=parse_settings("expandable_segments:True"), **limits)


def totals(allocator: CachingAllocator) -> list[int]:
    return [state.total_bytes // MIB for state in allocator.snapshot()]


def test_a_segment_grows_by_granules() -> None:
    allocator = expandable()
    first = allocator.allocate(15 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    second = allocator.allocate(15 * MIB)  # 5 MiB are there, 10 are missing
    assert second.address == first.address + 15 * MIB
    assert allocator.reserved_bytes == 40 * MIB
    assert totals(allocator) == [40]
    allocator.allocate(MIB)
    assert allocator.reserved_bytes == 42 * MIB
    assert (totals(allocator), allocator.num_segments) == ([40, 2], 0)


def test_even_large_blocks_are_split_to_512() -> None:
    allocator = expandable()
    assert allocator.allocate(11 * MIB).size_bytes == 11 * MIB
    assert allocator.allocate(9 * MIB - 512).size_bytes == 9 * MIB - 512
    assert allocator.inactive_split_bytes == 0  # torch does not count them


def test_each_stream_has_its_own_segment() -> None:
    allocator = expandable()
    allocator.allocate(20 * MIB)
    allocator.allocate(20 * MIB, stream=1)
    assert totals(allocator) == [20, 20]


def test_the_released_cache_leaves_holes_that_are_filled_again() -> None:
    allocator = expandable()
    blocks = [allocator.allocate(25 * MIB) for _ in range(4)]  # 100 MiB, five granules
    allocator.free(blocks[1])  # 25 to 50: the granule 40 to 60 is in use, 20 to 40 is not whole either
    allocator.free(blocks[2])  # 25 to 75: the granule 40 to 60 is free
    allocator.empty_cache()
    assert allocator.reserved_bytes == 80 * MIB
    assert totals(allocator) == [40, 40]
    assert allocator.snapshot()[0].blocks == (
        (0, 25 * MIB, "allocated", 25 * MIB),
        (25 * MIB, 15 * MIB, "free", 0),
    )
    again = allocator.allocate(50 * MIB)  # 15 free, 20 unmapped, 15 free
    assert again.address == blocks[1].address
    assert (allocator.reserved_bytes, totals(allocator)) == (100 * MIB, [100])
    allocator.free(again)
    allocator.free(blocks[0])
    allocator.free(blocks[3])
    allocator.empty_cache()
    assert (allocator.reserved_bytes, totals(allocator)) == (0, [])


def test_best_fit_prefers_what_cannot_grow() -> None:
    allocator = expandable()
    first, _, third = (allocator.allocate(size * MIB) for size in (18, 4, 10))
    allocator.free(first)  # 18 MiB that cannot grow; at the end 8 MiB that can
    assert allocator.allocate(5 * MIB).address == first.address
    allocator.free(third)
    assert allocator.reserved_bytes == 40 * MIB


def test_memory_for_another_stream_comes_from_the_cache() -> None:
    allocator = expandable(capacity_bytes=60 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(30 * MIB, stream=1)
    assert (allocator.reserved_bytes, allocator.num_alloc_retries) == (40 * MIB, 1)


def test_what_cannot_be_mapped_is_refused() -> None:
    allocator = expandable(capacity_bytes=50 * MIB)
    allocator.allocate(30 * MIB)  # 40 MiB are mapped; a granule of 20 more does not fit
    with pytest.raises(OutOfDeviceMemory):
        allocator.allocate(11 * MIB)
    assert (allocator.num_ooms, allocator.num_alloc_retries, allocator.reserved_bytes) == (1, 1, 40 * MIB)
    allocator.allocate(10 * MIB)
    with pytest.raises(OutOfDeviceMemory):
        allocator.allocate(200 * MIB)


def test_a_cap_is_compared_with_the_segment_not_with_the_granules() -> None:
    allocator = expandable(cap_bytes=30 * MIB)
    allocator.allocate(20 * MIB)
    allocator.allocate(10 * MIB)  # 20 + 10 is not above 30, but a whole granule is mapped
    assert allocator.reserved_bytes == 40 * MIB


def test_pending_blocks_are_not_room() -> None:
    allocator = expandable()
    allocator.set_event_query(lambda stream: stream, lambda _: False)
    block = allocator.allocate(15 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)
    assert allocator.allocate(15 * MIB).address == block.address + 15 * MIB
    allocator.empty_cache()  # waits for the event: 15 MiB are free, but not a whole granule
    assert (allocator.active_bytes, allocator.reserved_bytes) == (15 * MIB, 40 * MIB)

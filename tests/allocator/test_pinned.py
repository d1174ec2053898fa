"""The pinned host allocator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.allocator import PinnedAllocator, parse_settings
from dsplan.units import KIB, MIB


@pytest.mark.parametrize(("size", "held"), [(0, 0), (1, 1), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, 2 * MIB)])
def test_a_block_is_the_next_power_of_two(size: int, held: int) -> None:
    allocator = PinnedAllocator()
    block = allocator.allocate(size)
    assert (block.size_bytes, block.requested_bytes) == (held, size)
    assert (allocator.allocated_bytes, allocator.active_bytes) == (held, held)


def test_freed_blocks_are_kept_for_their_size_class() -> None:
    allocator = PinnedAllocator()
    first = allocator.allocate(3 * KIB)
    allocator.free(first)
    assert (allocator.allocated_bytes, allocator.active_bytes) == (4 * KIB, 0)
    assert allocator.allocate(4 * KIB) is first
    allocator.free(first)
    allocator.allocate(2 * KIB)  # another class: not cut from the free block
    assert (allocator.allocated_bytes, allocator.active_bytes) == (6 * KIB, 2 * KIB)
    assert (allocator.peak_allocated_bytes, allocator.peak_active_bytes) == (6 * KIB, 4 * KIB)
    allocator.empty_cache()
    allocator.reset_peaks()
    assert (allocator.allocated_bytes, allocator.peak_allocated_bytes, allocator.peak_active_bytes) == (
        2 * KIB,
        2 * KIB,
        2 * KIB,
    )


def test_thresholds_for_rounding_and_for_keeping() -> None:
    settings = parse_settings("pinned_max_round_threshold_mb:8,pinned_max_cached_size_mb:16")
    allocator = PinnedAllocator(settings=settings)
    small, middle, large = (allocator.allocate(size * MIB) for size in (5, 9, 17))
    assert [block.size_bytes // MIB for block in (small, middle, large)] == [8, 9, 17]
    for block in (small, middle, large):
        allocator.free(block)
    assert allocator.allocated_bytes == 17 * MIB  # 8 + 9; the 17 went back
    # What is not kept is not rounded either.
    assert (
        PinnedAllocator(settings=parse_settings("pinned_max_cached_size_mb:1")).allocate(3 * MIB).size_bytes == 3 * MIB
    )


def test_misuse_is_refused() -> None:
    allocator = PinnedAllocator()
    block = allocator.allocate(1)
    allocator.free(block)
    with pytest.raises(ValueError, match="freed twice"):
        allocator.free(block)
    with pytest.raises(ValueError, match="-1 bytes"):
        allocator.allocate(-1)


@given(st.lists(st.integers(0, 1 << 20), max_size=30))
def test_what_is_held_is_what_was_active_per_class(sizes: list[int]) -> None:
    allocator = PinnedAllocator()
    live = []
    for size in sizes:
        live.append(allocator.allocate(size))
        if size % 3 == 0:
            allocator.free(live.pop(size % len(live)))
        assert allocator.active_bytes == sum(block.size_bytes for block in live) <= allocator.allocated_bytes
        assert allocator.allocated_bytes == allocator.peak_allocated_bytes
    for block in live:
        allocator.free(block)
    assert allocator.active_bytes == 0
    allocator.empty_cache()
    assert allocator.allocated_bytes == 0

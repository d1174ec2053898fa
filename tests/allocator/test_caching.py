"""The caching allocator's rules, one by one, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from dsplan.allocator import AllocatorSettings, Block, CachingAllocator, OutOfDeviceMemory, parse_settings
from dsplan.allocator.rounding import round_size, segment_size
from dsplan.units import GIB, KIB, MIB

PLAIN = AllocatorSettings()


def levels(allocator: CachingAllocator) -> tuple[int, int]:
    return allocator.allocated_bytes, allocator.reserved_bytes


def capped(cap: int, settings: str = "") -> CachingAllocator:
    return CachingAllocator(settings=parse_settings(settings), cap_bytes=cap)


@pytest.mark.parametrize(
    ("request_bytes", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # rounded first: 10 MiB is a segment of its own
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (GIB, GIB, GIB),
    ],
)
def test_a_request_becomes_a_block_and_a_segment(request_bytes: int, block: int, segment: int) -> None:
    assert round_size(request_bytes, PLAIN) == block
    assert segment_size(block, PLAIN) == segment


def test_divisions_of_powers_of_two() -> None:
    four = parse_settings("roundup_power2_divisions:4")
    assert round_size(1200, four) == 1536  # not above 4 * 512: in steps of 512
    assert round_size(2049, four) == 2560  # 2048 to 4096 in steps of 512
    assert round_size(5000, four) == 5120  # 4096 to 8192 in steps of 1024
    assert round_size(4096, four) == 4096
    by_size = parse_settings("roundup_power2_divisions:[64:2,>:4]")
    assert round_size(65 * MIB, by_size) == 96 * MIB
    assert round_size(3 * MIB + 1, by_size) == 4 * MIB  # the first boundary counts below it too
    assert round_size(129 * MIB, by_size) == 160 * MIB
    assert round_size(129 * GIB, by_size) == 160 * GIB  # the last interval has no end


def test_small_requests_share_a_segment() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(1000) for _ in range(2048)]
    assert levels(allocator) == (2 * MIB, 2 * MIB)
    assert allocator.requested_bytes == 2_048_000
    assert [block.size_bytes for block in blocks[:2]] == [1024, 1024]
    assert blocks[1].address - blocks[0].address == 1024
    allocator.allocate(1)
    assert allocator.reserved_bytes == 4 * MIB
    assert allocator.num_segments == 2


def test_a_large_remainder_of_at_most_1_mib_stays_with_its_block() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(11 * MIB)  # a segment of 12 MiB leaves exactly 1 MiB
    assert (block.size_bytes, block.requested_bytes) == (12 * MIB, 11 * MIB)
    assert levels(allocator) == (12 * MIB, 12 * MIB)
    other = allocator.allocate(11 * MIB - 512)
    assert other.size_bytes == 11 * MIB - 512  # leaves 1 MiB + 512
    assert allocator.inactive_split_bytes == MIB + 512


def test_a_small_remainder_of_512_is_split_off() -> None:
    allocator = CachingAllocator()
    allocator.allocate(MIB)
    block = allocator.allocate(MIB - 512)
    assert block.size_bytes == MIB - 512
    assert allocator.allocate(512).address == block.address + block.size_bytes
    assert levels(allocator) == (2 * MIB, 2 * MIB)


def test_pools_are_for_one_stream_and_one_kind() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(2 * MIB))  # leaves a free large segment of 20 MiB
    allocator.allocate(MIB)  # small: not from it
    assert allocator.reserved_bytes == 22 * MIB
    allocator.allocate(2 * MIB, stream=7)
    assert allocator.reserved_bytes == 42 * MIB
    allocator.allocate(18 * MIB)
    assert allocator.reserved_bytes == 42 * MIB
    seen = sorted((state.stream, state.is_large) for state in allocator.snapshot())
    assert seen == [(0, False), (0, True), (7, True)]


def test_the_best_fit_is_the_smallest_then_the_lowest() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MIB) for size in (40, 30, 30, 20)]
    for block in blocks:
        allocator.free(block)
    lower, higher = sorted(block.address for block in blocks[1:3])
    assert allocator.allocate(25 * MIB).address == lower
    assert allocator.allocate(30 * MIB).address == higher
    assert allocator.allocate(12 * MIB).address == blocks[3].address


def test_free_neighbours_merge_on_both_sides() -> None:
    allocator = CachingAllocator()
    first, second, third = (allocator.allocate(512 * KIB) for _ in range(3))
    allocator.free(first)
    allocator.free(third)  # merges with the rest of the segment
    assert [size for _, size, _, _ in allocator.snapshot()[0].blocks] == [512 * KIB, 512 * KIB, MIB]
    allocator.free(second)
    assert allocator.snapshot()[0].blocks == ((0, 2 * MIB, "free", 0),)
    assert levels(allocator) == (0, 2 * MIB)


def test_a_snapshot_shows_segments_and_blocks() -> None:
    allocator = CachingAllocator()
    kept = allocator.allocate(1000, stream=3)
    (state,) = allocator.snapshot()
    assert (state.address, state.total_bytes, state.stream, state.is_large) == (kept.address, 2 * MIB, 3, False)
    assert state.blocks == ((0, 1024, "allocated", 1000), (1024, 2 * MIB - 1024, "free", 0))


def test_nothing_takes_nothing() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(0, stream=2)
    assert (block.size_bytes, block.requested_bytes, block.stream) == (0, 0, 2)
    allocator.record_stream(block, 5)
    allocator.free(block)
    assert levels(allocator) == (0, 0)
    assert allocator.snapshot() == []
    with pytest.raises(ValueError, match="freed twice"):
        allocator.free(block)


def test_misuse_is_refused() -> None:
    allocator = CachingAllocator()
    first, second = allocator.allocate(512), allocator.allocate(512)
    allocator.free(first)
    allocator.free(second)  # now part of the block before it
    for block in (first, second):
        with pytest.raises(ValueError, match="freed twice"):
            allocator.free(block)
        with pytest.raises(ValueError, match="cannot be recorded"):
            allocator.record_stream(block, 1)
    with pytest.raises(ValueError, match="-1 bytes"):
        allocator.allocate(-1)


def test_peaks_start_again_at_the_level() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(100 * MIB)
    small = allocator.allocate(MIB)
    allocator.free(block)
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (101 * MIB, 102 * MIB)
    assert (allocator.peak_active_bytes, allocator.peak_requested_bytes) == (101 * MIB, 101 * MIB)
    allocator.empty_cache()
    allocator.reset_peaks()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (MIB, 2 * MIB)
    assert (allocator.peak_active_bytes, allocator.peak_requested_bytes) == (MIB, MIB)
    allocator.free(small)
    assert allocator.peak_allocated_bytes == MIB


def test_empty_cache_keeps_segments_in_use() -> None:
    allocator = CachingAllocator()
    kept = allocator.allocate(512)
    allocator.free(allocator.allocate(30 * MIB))
    allocator.empty_cache()
    assert levels(allocator) == (512, 2 * MIB)
    allocator.free(kept)
    allocator.empty_cache()
    assert (levels(allocator), allocator.num_segments) == ((0, 0), 0)


# Other streams.


def test_a_recorded_block_is_free_at_the_next_allocation() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(30 * MIB)
    allocator.record_stream(block, 0)  # its own stream: no effect
    allocator.record_stream(block, 1)
    allocator.record_stream(block, 1)
    allocator.free(block)
    assert (allocator.allocated_bytes, allocator.active_bytes) == (0, 30 * MIB)
    assert allocator.snapshot()[0].blocks == ((0, 30 * MIB, "pending", 30 * MIB),)
    allocator.allocate(0)  # asks the driver nothing
    assert allocator.active_bytes == 30 * MIB
    again = allocator.allocate(30 * MIB)
    assert again.address == block.address
    assert (allocator.active_bytes, allocator.reserved_bytes) == (30 * MIB, 30 * MIB)


def test_events_are_asked_in_order_for_each_stream() -> None:
    done: set[str] = set()
    made: list[str] = []

    def make_event(stream: int) -> str:
        made.append(f"{stream}.{sum(name.startswith(f'{stream}.') for name in made)}")
        return made[-1]

    allocator = CachingAllocator()
    allocator.set_event_query(make_event, lambda event: event in done)
    first, second = allocator.allocate(MIB), allocator.allocate(MIB)
    for block, streams in ((first, (1, 2)), (second, (1,))):
        for stream in streams:
            allocator.record_stream(block, stream)
        allocator.free(block)
    assert made == ["1.0", "2.0", "1.1"]

    def active_after_an_allocation() -> int:
        allocator.free(allocator.allocate(512))
        return allocator.active_bytes

    assert active_after_an_allocation() == 2 * MIB
    done.add("1.1")  # behind 1.0, which is not done
    assert active_after_an_allocation() == 2 * MIB
    done.add("1.0")  # frees the second block; the first waits for stream 2
    assert active_after_an_allocation() == MIB
    done.add("2.0")
    assert active_after_an_allocation() == 0


def test_running_out_waits_for_the_events() -> None:
    allocator = capped(40 * MIB)
    allocator.set_event_query(lambda stream: stream, lambda _: False)
    block = allocator.allocate(30 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)
    allocator.allocate(20 * MIB)
    assert levels(allocator) == (20 * MIB, 20 * MIB)
    assert allocator.active_bytes == 20 * MIB
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 0)


# Limits.


@pytest.mark.parametrize("limit", ["cap_bytes", "capacity_bytes"])
def test_the_cache_is_released_before_it_is_too_late(limit: str) -> None:
    allocator = CachingAllocator(**{limit: 100 * MIB})
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(512)
    allocator.allocate(98 * MIB)
    assert levels(allocator) == (98 * MIB + 512, 100 * MIB)
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 0)
    with pytest.raises(OutOfDeviceMemory) as caught:
        allocator.allocate(3 * MIB + 1)
    error = caught.value
    assert (error.requested, error.rounded, error.segment) == (3 * MIB + 1, 3 * MIB + 512, 20 * MIB)
    assert (error.allocated, error.reserved, error.capacity) == (98 * MIB + 512, 100 * MIB, 100 * MIB)
    assert str(error) == (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU has a total capacity of 100.00 MiB of which 0 bytes is "
        "free. Of the allocated memory 98.00 MiB is allocated by PyTorch, and 2.00 MiB is reserved by PyTorch but "
        "unallocated."
    )
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (2, 1)
    allocator.allocate(MIB)  # the cached rest of the small segment still serves


def test_a_split_segment_cannot_be_released() -> None:
    allocator = capped(40 * MIB)
    small = allocator.allocate(2 * MIB)  # holds a segment of 20 MiB
    with pytest.raises(OutOfDeviceMemory):
        allocator.allocate(22 * MIB)
    allocator.free(small)
    allocator.allocate(22 * MIB)
    assert levels(allocator) == (22 * MIB, 22 * MIB)


def test_the_fraction_is_a_share_of_the_capacity() -> None:
    settings = parse_settings("per_process_memory_fraction:0.5")
    allocator = CachingAllocator(settings=settings, capacity_bytes=100 * MIB)
    allocator.allocate(50 * MIB)
    with pytest.raises(OutOfDeviceMemory):
        allocator.allocate(512)
    with pytest.raises(ValueError, match="a share of what"):
        CachingAllocator(settings=settings)


# max_split_size_mb and garbage_collection_threshold.


def test_oversize_blocks_are_neither_split_nor_given_to_smaller_requests() -> None:
    allocator = CachingAllocator(settings=parse_settings("max_split_size_mb:64"))
    allocator.free(allocator.allocate(100 * MIB))
    assert allocator.allocate(60 * MIB).size_bytes == 60 * MIB  # a segment of its own
    assert allocator.reserved_bytes == 160 * MIB
    assert allocator.allocate(80 * MIB).size_bytes == 80 * MIB  # 100 >= 80 + 20: too much larger
    assert allocator.reserved_bytes == 240 * MIB
    block = allocator.allocate(80 * MIB + 512)
    assert block.size_bytes == 100 * MIB  # whole, although 20 MiB are not used
    assert levels(allocator) == (240 * MIB, 240 * MIB)


def test_a_block_of_exactly_the_limit_is_oversize() -> None:
    allocator = CachingAllocator(settings=parse_settings("max_split_size_mb:64"))
    allocator.free(allocator.allocate(64 * MIB))
    assert allocator.allocate(64 * MIB - 512).size_bytes == 64 * MIB  # a new one: it leaves only 512
    assert allocator.reserved_bytes == 128 * MIB


def test_how_much_larger_can_be_set() -> None:
    allocator = CachingAllocator(settings=parse_settings("max_split_size_mb:64,max_non_split_rounding_mb:30"))
    allocator.free(allocator.allocate(100 * MIB))
    assert allocator.allocate(71 * MIB).size_bytes == 100 * MIB


def test_one_oversize_segment_that_is_large_enough_is_released_first() -> None:
    allocator = capped(400 * MIB, "max_split_size_mb:64")
    for block in [allocator.allocate(size * MIB) for size in (100, 120, 140)]:
        allocator.free(block)
    allocator.allocate(50 * MIB)  # wants 64: the 100 goes
    assert sorted(state.total_bytes // MIB for state in allocator.snapshot()) == [50, 120, 140]
    assert allocator.num_alloc_retries == 0


def test_else_several_are_released_largest_first() -> None:
    allocator = capped(400 * MIB, "max_split_size_mb:64")
    for block in [allocator.allocate(size * MIB) for size in (100, 120, 140)]:
        allocator.free(block)
    allocator.allocate(200 * MIB)  # 140 and 120
    assert sorted(state.total_bytes // MIB for state in allocator.snapshot()) == [100, 200]
    assert allocator.num_alloc_retries == 0
    with pytest.raises(OutOfDeviceMemory):
        allocator.allocate(300 * MIB)  # 100 is not enough, and nothing else is free
    assert allocator.num_alloc_retries == 1


def test_old_segments_are_collected_above_the_threshold() -> None:
    allocator = capped(1000 * MIB, "garbage_collection_threshold:0.5")
    old, new = allocator.allocate(300 * MIB), allocator.allocate(100 * MIB)
    allocator.free(old)
    for _ in range(10):  # each takes the segment of 100 MiB: it stays young, the other ages
        allocator.free(new)
        new = allocator.allocate(100 * MIB)
    allocator.allocate(310 * MIB)  # 400 MiB reserved is not above 500
    assert allocator.reserved_bytes == 710 * MIB
    allocator.free(new)
    allocator.allocate(320 * MIB)  # 710 is: the old one goes, the young one stays
    assert allocator.reserved_bytes == (100 + 310 + 320) * MIB
    assert allocator.num_alloc_retries == 0


def test_without_a_cap_nothing_is_collected() -> None:
    settings = parse_settings("garbage_collection_threshold:0.1")
    allocator = CachingAllocator(settings=settings, capacity_bytes=1000 * MIB)
    allocator.free(allocator.allocate(300 * MIB))
    allocator.allocate(400 * MIB)
    assert allocator.reserved_bytes == 700 * MIB


def test_the_large_segment_can_be_set() -> None:
    allocator = CachingAllocator(settings=parse_settings("large_segment_size_mb:32"))
    allocator.allocate(3 * MIB)
    assert allocator.reserved_bytes == 32 * MIB


def test_a_block_shows_what_it_is() -> None:
    block: Block = CachingAllocator().allocate(1, stream=4)
    assert repr(block) == f"Block(address={block.address:#x}, size_bytes=512, stream=4)"

"""Replaying the sequences of tests/gpu/traces.py through the emulation, and checking what must always hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dsplan.allocator import Block, CachingAllocator, OutOfDeviceMemory, SegmentState, parse_settings


@dataclass
class Event:
    is_done: bool


@dataclass
class Streams:
    """Which streams are busy, and the events that wait for them."""

    busy: set[int] = field(default_factory=set)
    waiting: list[Event] = field(default_factory=list)

    def make_event(self, stream: int) -> Event:
        event = Event(stream not in self.busy)
        self.waiting.append(event)
        return event

    def wait(self) -> None:
        self.busy.clear()
        for event in self.waiting:
            event.is_done = True
        self.waiting.clear()


@dataclass
class Seen:
    allocator: CachingAllocator
    blocks: dict[int, Block]
    levels: list[list[int]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


@dataclass
class Recorded:
    """Where cudaMalloc put a segment is the driver's choice: what it chose is given, and all else must follow."""

    seen: Seen
    addresses: list[int]

    def take(self, size_bytes: int) -> int:  # noqa: ARG002
        return self.addresses[len(self.seen.levels)]

    def give_back(self, address: int) -> None:
        """Nothing is kept."""


def replay(sequence: dict[str, Any], check: Callable[[CachingAllocator], None] = lambda _: None) -> Seen:
    """Run a sequence; ``check`` is called after every operation."""
    allocator = CachingAllocator(settings=parse_settings(sequence["configuration"]), cap_bytes=sequence["cap_bytes"])
    streams = Streams()
    allocator.set_event_query(streams.make_event, lambda event: bool(getattr(event, "is_done", True)))
    seen = Seen(allocator, {})
    addresses = sequence.get("addresses")
    if addresses is not None and "expandable" not in sequence["configuration"]:
        allocator.set_placement(Recorded(seen, addresses))
    for place, (kind, *rest) in enumerate(sequence["operations"]):
        if kind == "alloc":
            try:
                seen.blocks[rest[0]] = allocator.allocate(rest[1], rest[2])
            except OutOfDeviceMemory:
                seen.failed.append(place)
        elif kind == "free" and rest[0] in seen.blocks:
            allocator.free(seen.blocks.pop(rest[0]))
        elif kind == "record_stream" and rest[0] in seen.blocks:
            allocator.record_stream(seen.blocks[rest[0]], rest[1])
        elif kind == "empty_cache":
            allocator.empty_cache()
        elif kind == "busy":
            streams.busy.add(rest[0])
        elif kind == "wait":
            streams.wait()
        check(allocator)
        seen.levels.append([allocator.allocated_bytes, allocator.reserved_bytes, allocator.active_bytes])
    return seen


def check_consistent(allocator: CachingAllocator) -> None:
    """What holds after every operation: levels against blocks, tiling, merging, peaks."""
    segments = allocator.snapshot()
    sums = {"allocated": 0, "pending": 0, "free": 0}
    requested = 0
    for segment in segments:
        offset = 0
        for place, size, state, wanted in segment.blocks:
            assert place == offset
            assert size > 0
            offset += size
            sums[state] += size
            requested += wanted
        assert offset == segment.total_bytes
        states = [state for _, _, state, _ in segment.blocks]
        assert ("free", "free") not in itertools.pairwise(states), "free neighbours are not merged"
    assert sums["allocated"] == allocator.allocated_bytes
    assert sums["allocated"] + sums["pending"] == allocator.active_bytes
    assert sum(sums.values()) == allocator.reserved_bytes
    assert requested == allocator.requested_bytes <= allocator.active_bytes
    assert allocator.peak_allocated_bytes >= allocator.allocated_bytes
    assert allocator.peak_reserved_bytes >= allocator.reserved_bytes
    assert allocator.peak_active_bytes >= allocator.active_bytes
    assert allocator.peak_requested_bytes >= allocator.requested_bytes
    _check_pools(allocator, segments)


def _check_pools(allocator: CachingAllocator, segments: list[SegmentState]) -> None:
    """The pools hold exactly the free blocks of the segments, in order."""
    for pool in allocator._pools():
        assert pool.keys == sorted(pool.keys)
        assert [key >> 64 for key in pool.keys] == [block.size_bytes for block in pool.blocks]
        assert [block.address for block in pool.unmapped] == sorted(block.address for block in pool.unmapped)
    pooled = sorted((block.address, block.size_bytes) for pool in allocator._pools() for block in pool.blocks)
    free = sorted(
        (segment.address + offset, size)
        for segment in segments
        for offset, size, state, _ in segment.blocks
        if state == "free"
    )
    assert pooled == free

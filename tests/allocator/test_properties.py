"""What must hold for any sequence of events; and the fast allocator against a slow, obvious one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.allocator import CachingAllocator, OutOfDeviceMemory, parse_settings
from dsplan.units import MIB, round_up
from tests.allocator.replay import check_consistent, replay
from tests.gpu.traces import CONFIGURATIONS

CAP = 257 * MIB
SIZES = st.one_of(
    st.integers(0, 4096),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 128 * MIB),
    st.sampled_from([MIB, 10 * MIB, 64 * MIB]),
)
STREAMS = st.integers(0, 2)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), SIZES, STREAMS),
        st.tuples(st.just("alloc"), SIZES, st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 99)),
        st.tuples(st.just("free"), st.integers(0, 99)),
        st.tuples(st.just("record_stream"), st.integers(0, 99), STREAMS),
        st.tuples(st.just("busy"), STREAMS),
        st.tuples(st.sampled_from(["empty_cache", "wait"])),
    ),
    max_size=60,
)


def numbered(drawn: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Give every allocation a number; a drawn number stands for one of those that are live."""
    found: list[list[Any]] = []
    live: list[int] = []
    for kind, *rest in drawn:
        if kind == "alloc":
            live.append(len(found))
            found.append([kind, len(found), *rest])
        elif kind in ("free", "record_stream"):
            if live:
                place = rest[0] % len(live)
                found.append([kind, live.pop(place) if kind == "free" else live[place], *rest[1:]])
        else:
            found.append([kind, *rest])
    return found


@settings(deadline=None, max_examples=150)
@given(OPERATIONS, st.sampled_from(CONFIGURATIONS), st.sampled_from([None, CAP]))
def test_levels_blocks_and_pools_agree(drawn: list[Any], configuration: str, cap: int | None) -> None:
    sequence = {"configuration": configuration, "cap_bytes": cap, "operations": numbered(drawn)}
    seen = replay(sequence, check_consistent)
    allocator = seen.allocator
    for block in seen.blocks.values():
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    check_consistent(allocator)
    assert allocator.snapshot() == []
    assert (allocator.reserved_bytes, allocator.active_bytes, allocator.requested_bytes) == (0, 0, 0)
    assert all(not pool.keys and not pool.unmapped for pool in allocator._pools())


@dataclass
class Slow:
    """The rules without any cleverness: segments are lists of [size, is free, number], searched from end to end."""

    cap: int | None
    max_split: int
    threshold: float
    segments: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    made: int = 0

    def reserved(self) -> int:
        return sum(segment["size"] for segment in self.segments)

    def allocated(self) -> int:
        return sum(size for segment in self.segments for size, number, _ in segment["blocks"] if number is not None)

    def alloc(self, number: int, size: int, stream: int) -> bool:
        size = max(512, round_up(size, 512))
        large = size > MIB
        self.calls += large
        fits = sorted(
            (block[0], segment["address"], place, segment["made"])
            for segment in self.segments
            if (segment["stream"], segment["large"]) == (stream, large)
            for place, block in enumerate(segment["blocks"])
            if block[1] is None and block[0] >= size
        )
        if fits and size < self.max_split <= fits[0][0]:
            fits = []
        if fits and size >= self.max_split and fits[0][0] >= size + 20 * MIB:
            fits = []
        if fits:
            segment = next(segment for segment in self.segments if segment["made"] == fits[0][3])
            place = fits[0][2]
        else:
            room = 2 * MIB if not large else 20 * MIB if size < 10 * MIB else round_up(size, 2 * MIB)
            if not self.make_room(size, room, stream, large):
                return False
            self.made += 1
            segment = {"size": room, "stream": stream, "large": large, "address": self.made, "made": self.made}
            segment["blocks"] = [[room, None, 0]]
            self.segments.append(segment)
            place = 0
        whole = segment["blocks"][place][0]
        rest = whole - size
        if rest > MIB and size < self.max_split if large else rest >= 512:
            segment["blocks"][place : place + 1] = [[size, number, 0], [rest, None, self.calls]]
        else:
            segment["blocks"][place] = [whole, number, 0]
        return True

    def make_room(self, size: int, room: int, stream: int, large: bool) -> bool:
        if self.cap is None:
            return True
        if self.threshold and self.reserved() > int(self.threshold * self.cap):
            self.collect(self.reserved() - int(self.threshold * self.cap))
        if self.reserved() + room <= self.cap:
            return True
        mine = [s for s in self.unused() if (s["stream"], s["large"]) == (stream, large)]
        mine = sorted((s for s in mine if s["size"] >= self.max_split), key=lambda s: (s["size"], s["address"]))
        wanted = max(size, self.max_split)
        enough = [s for s in mine if s["size"] >= wanted]
        released = 0
        for segment in enough[:1] or mine[::-1]:
            if released < wanted:
                released += segment["size"]
                self.segments.remove(segment)
        if released >= wanted and self.reserved() + room <= self.cap:
            return True
        self.empty_cache()
        return self.reserved() + room <= self.cap

    def unused(self) -> list[dict[str, Any]]:
        return [s for s in self.segments if len(s["blocks"]) == 1 and s["blocks"][0][1] is None]

    def collect(self, target: int) -> None:
        reclaimed = 0
        while reclaimed < target and (old := [s for s in self.unused() if s["large"]]):
            ages = [self.calls - s["blocks"][0][2] for s in old]
            for segment, age in zip(old, ages, strict=True):
                if age >= sum(ages) / len(ages):
                    reclaimed += segment["size"]
                    self.segments.remove(segment)

    def free(self, number: int) -> None:
        for segment in self.segments:
            for place, block in enumerate(segment["blocks"]):
                if block[1] == number:
                    block[1:] = [None, self.calls]
                    first, last = place, place + 1
                    first -= first > 0 and segment["blocks"][first - 1][1] is None
                    last += last < len(segment["blocks"]) and segment["blocks"][last][1] is None
                    joined = [sum(size for size, _, _ in segment["blocks"][first:last]), None, self.calls]
                    segment["blocks"][first:last] = [joined]
                    return

    def empty_cache(self) -> None:
        for segment in self.unused():
            self.segments.remove(segment)


class Rising:
    """Addresses that only rise, as those of ``Slow`` do."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, size_bytes: int) -> int:
        self.next += size_bytes
        return self.next - size_bytes

    def give_back(self, address: int) -> None:
        """Never used again."""


@settings(deadline=None, max_examples=300)
@given(
    OPERATIONS,
    st.sampled_from(["", "max_split_size_mb:32", "garbage_collection_threshold:0.4"]),
    st.sampled_from([None, CAP]),
)
def test_the_fast_allocator_is_the_slow_one(drawn: list[Any], configuration: str, cap: int | None) -> None:
    chosen = parse_settings(configuration)
    fast = CachingAllocator(settings=chosen, cap_bytes=cap)
    fast.set_placement(Rising())
    slow = Slow(cap, chosen.max_split_size_bytes or 1 << 62, chosen.garbage_collection_threshold)
    blocks = {}
    for kind, *rest in numbered(drawn):
        if kind == "alloc" and rest[1]:
            try:
                blocks[rest[0]] = fast.allocate(rest[1], rest[2])
                fits = True
            except OutOfDeviceMemory:
                fits = False
            assert fits == slow.alloc(*rest)
        elif kind == "free" and rest[0] in blocks:
            fast.free(blocks.pop(rest[0]))
            slow.free(rest[0])
        elif kind == "empty_cache":
            fast.empty_cache()
            slow.empty_cache()
        assert (fast.allocated_bytes, fast.reserved_bytes) == (slow.allocated(), slow.reserved())
    assert [[size for _, size, _, _ in state.blocks] for state in fast.snapshot()] == [
        [size for size, _, _ in segment["blocks"]] for segment in slow.segments
    ]

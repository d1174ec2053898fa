"""Expandable segments: for each pool one range of addresses that grows and shrinks by granules.

Followed from ``ExpandableSegment`` and ``find_expandable_block`` to ``unmap_block`` in CUDACachingAllocator.cpp. A
segment is tiled by blocks like any other; those without memory behind them are UNMAPPED, aligned to granules, and two
of them never lie side by side. The block at the lower address survives a merge here (in torch either may), so the head
of a segment is one object for as long as the segment lives.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from operator import attrgetter

from dsplan.allocator.blocks import FREE, UNMAPPED, Block, Pool
from dsplan.allocator.statistics import Statistics
from dsplan.units import MIB, round_up

SMALL_GRANULE_BYTES = 2 * MIB  # kSmallBuffer
UNLIMITED_ADDRESS_SPACE = 1 << 45

_address = attrgetter("address")


class ExpandableSegments:
    """The expandable segments of one device.

    ``capacity_bytes`` is what the driver can map in total (None: unlimited). A segment reserves 1 1/8 times that in
    addresses (``ExpandableSegment``'s constructor takes the device's total memory); only when unmapped holes use that
    up does a pool get a second segment.
    """

    def __init__(self, statistics: Statistics, *, large_granule_bytes: int, capacity_bytes: int | None) -> None:
        self._statistics = statistics
        self._large_granule = large_granule_bytes
        self._capacity = capacity_bytes
        self._next_address = 0
        self.heads: dict[int, Block] = {}  # by address, which only rises

    def pick(self, pool: Pool, at: int) -> int:
        """Best fit by what a block can grow to, from the first that is large enough (``get_free_block``)."""
        blocks = pool.blocks
        while at + 1 < len(blocks) and _reach(blocks[at + 1]) < _reach(blocks[at]):
            at += 1
        return at

    def allocate(self, pool: Pool, size_bytes: int) -> Block | None:
        """A block of at least ``size_bytes``, out of the pool; None when the driver has no memory left.

        What was mapped before that happened stays mapped and free (``try_allocate_expandable_block``).
        """
        found: Block | None = self._find(pool, size_bytes)
        assert found is not None
        if found.state == UNMAPPED:
            found = self._map(pool, found, min(found.size_bytes, size_bytes))
        while found is not None and found.size_bytes < size_bytes:
            following = found.next
            if following is None:  # the request is larger than the whole range of addresses
                return None
            found = self._map(pool, following, min(size_bytes - found.size_bytes, following.size_bytes))
        if found is not None:
            pool.remove(found)
        return found

    def release_oversize(self, _pool: Pool, _size_bytes: int, _max_split_bytes: int) -> bool:
        """Blocks of expandable segments are not released one by one (``release_available_cached_blocks``)."""
        return False

    def collect(self, _pools: Iterable[Pool], _target_bytes: int, _now: int) -> None:
        """Nor are they collected by age (``garbage_collect_cached_blocks``)."""

    def release(self, pool: Pool) -> None:
        """Unmap every granule that lies in a free block; drop segments that are empty (``release_blocks``)."""
        for block in list(pool.blocks):
            self._unmap(pool, block)

    def _granule(self, pool: Pool) -> int:
        return self._large_granule if pool.is_large else SMALL_GRANULE_BYTES

    def _find(self, pool: Pool, size_bytes: int) -> Block:
        """The lowest address with room, made of free and unmapped blocks (``find_expandable_block``)."""
        for candidate in pool.unmapped:
            before = candidate.prev
            start = before if before is not None and before.state == FREE else candidate
            room, block = 0, start
            while room < size_bytes and block.state in (FREE, UNMAPPED):
                room += block.size_bytes
                if block.next is None:
                    break
                block = block.next
            if room >= size_bytes:
                return start
        return self._reserve(pool)

    def _reserve(self, pool: Pool) -> Block:
        """A new segment: addresses only."""
        granule = self._granule(pool)
        space = UNLIMITED_ADDRESS_SPACE if self._capacity is None else self._capacity + self._capacity // 8
        size = max(granule, round_up(space, granule))
        address = round_up(self._next_address, granule)  # granules are counted from address 0
        self._next_address = address + size
        head = Block(pool, pool.stream, address, size, UNMAPPED)
        pool.unmapped.append(head)  # the highest address so far
        self.heads[address] = head
        return head

    def _map(self, pool: Pool, block: Block, size_bytes: int) -> Block | None:
        """Put memory behind the first ``size_bytes`` of an unmapped block (``map_block``); the free block it is in."""
        size = round_up(size_bytes, self._granule(pool))
        if self._capacity is not None and self._statistics.reserved_bytes + size > self._capacity:
            return None
        if size < block.size_bytes:
            _split(block, size)
            assert block.next is not None
            _remove_unmapped(pool, block)
            insort(pool.unmapped, block.next, key=_address)
        else:
            _remove_unmapped(pool, block)
        block.state = FREE
        before, after = block.prev, block.next
        if before is not None and before.state == FREE:
            pool.remove(before)
            block = _join(before, block)
        if after is not None and after.state == FREE:
            pool.remove(after)
            _join(block, after)
        pool.insert(block)
        self._statistics._take(size)
        return block

    def _unmap(self, pool: Pool, block: Block) -> None:
        """Take the memory from behind the whole granules of a free block (``unmap_block``)."""
        granule = self._granule(pool)
        begin = round_up(block.address, granule)
        end = (block.address + block.size_bytes) // granule * granule
        if begin >= end:
            return
        pool.remove(block)
        if begin > block.address:
            middle = _split(block, begin - block.address)
            pool.insert(block)
        else:
            middle = block
        if end < middle.address + middle.size_bytes:
            pool.insert(_split(middle, end - begin))
        middle.state = UNMAPPED
        before, after = middle.prev, middle.next
        if after is not None and after.state == UNMAPPED:
            _remove_unmapped(pool, after)
            _join(middle, after)
        if before is not None and before.state == UNMAPPED:
            middle = _join(before, middle)
        else:
            insort(pool.unmapped, middle, key=_address)
        self._statistics.reserved_bytes -= end - begin
        if middle.prev is None and middle.next is None:  # release_expandable_segment
            _remove_unmapped(pool, middle)
            del self.heads[middle.address]


def _reach(block: Block) -> int:
    """How large a free block can become by mapping what follows it."""
    after = block.next
    return block.size_bytes + (after.size_bytes if after is not None and after.state == UNMAPPED else 0)


def _split(block: Block, size_bytes: int) -> Block:
    """Cut a block after ``size_bytes``; the rest is a new block in the same state."""
    rest = Block(block.pool, block.stream, block.address + size_bytes, block.size_bytes - size_bytes, block.state)
    rest.prev, rest.next = block, block.next
    if block.next is not None:
        block.next.prev = rest
    block.next = rest
    block.size_bytes = size_bytes
    return rest


def _join(block: Block, following: Block) -> Block:
    """Make one block of two neighbours, in the state of the first, and return it."""
    block.size_bytes += following.size_bytes
    block.next = following.next
    if following.next is not None:
        following.next.prev = block
    return block


def _remove_unmapped(pool: Pool, block: Block) -> None:
    del pool.unmapped[bisect_left(pool.unmapped, block.address, key=_address)]

"""Fixed segments: one cudaMalloc each, given back only when no block of it is in use.

Followed from ``alloc_block``, ``release_block``, ``release_available_cached_blocks`` and
``garbage_collect_cached_blocks`` in CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from dsplan.allocator.blocks import Block, Pool
from dsplan.allocator.placement import DriverPlacement
from dsplan.allocator.statistics import Statistics


class Placement(Protocol):
    """Where cudaMalloc puts segments."""

    def take(self, size_bytes: int) -> int:
        """The address of a new segment."""

    def give_back(self, address: int) -> None:
        """The segment at ``address`` was freed."""


class FixedSegments:
    """The cudaMalloc'd segments of one device; ``capacity_bytes`` is what the driver can hand out in total."""

    def __init__(self, statistics: Statistics, *, capacity_bytes: int | None) -> None:
        self._statistics = statistics
        self._capacity = capacity_bytes
        self.placement: Placement = DriverPlacement()
        self.heads: dict[int, Block] = {}  # the first block of each segment, by address

    def pick(self, _pool: Pool, at: int) -> int:
        """The first block that is large enough is the best (``get_free_block``)."""
        return at

    def allocate(self, pool: Pool, segment_bytes: int) -> Block | None:
        """A new segment as one block; None when the driver has not that much left."""
        if self._capacity is not None and self._statistics.reserved_bytes + segment_bytes > self._capacity:
            return None
        address = self.placement.take(segment_bytes)
        block = self.heads[address] = Block(pool, pool.stream, address, segment_bytes)
        self._statistics._take(segment_bytes)
        return block

    def release(self, pool: Pool) -> None:
        """Give back every segment that is one free block (``release_blocks``)."""
        for block in [block for block in pool.blocks if not block.is_split]:
            self._release_block(pool, block)

    def release_oversize(self, pool: Pool, size_bytes: int, max_split_bytes: int) -> bool:
        """Free one oversize block that is large enough, else several, largest first; whether that is enough."""
        wanted = max(size_bytes, max_split_bytes)
        at = pool.first_of(wanted)
        if at < len(pool.blocks):
            self._release_block(pool, pool.blocks[at])
            return True
        released = 0
        while released < wanted and pool.blocks and pool.blocks[-1].size_bytes >= max_split_bytes:
            released += pool.blocks[-1].size_bytes
            self._release_block(pool, pool.blocks[-1])
        return released >= wanted

    def collect(self, pools: Iterable[Pool], target_bytes: int, now: int) -> None:
        """Release unused segments of at least average age, until ``target_bytes`` are released or none is left.

        The age of a block is the number of large requests since it became free (``Block::gc_count``); ``now`` is
        their number so far.
        """
        unused = [(pool, block) for pool in pools for block in pool.blocks if not block.is_split]
        reclaimed = 0
        while reclaimed < target_bytes and unused:  # the oldest is never below the average: every round releases
            total, count = sum(now - block.born_at_call for _, block in unused), len(unused)
            kept = []
            for pool, block in unused:
                if (now - block.born_at_call) * count >= total:
                    reclaimed += block.size_bytes
                    self._release_block(pool, block)
                else:
                    kept.append((pool, block))
            unused = kept

    def _release_block(self, pool: Pool, block: Block) -> None:
        """cudaFree (``release_block``)."""
        pool.remove(block)
        del self.heads[block.address]
        self.placement.give_back(block.address)
        self._statistics.reserved_bytes -= block.size_bytes

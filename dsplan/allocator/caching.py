"""The CUDA caching allocator: how torch turns requests into segments.

Followed from ``DeviceCachingAllocator`` in c10/cuda/CUDACachingAllocator.cpp; every method names the function whose
rule it keeps. Not replayed: CUDA graphs and private pools (``torch.cuda.MemPool``), free-memory callbacks, and changes
of the settings in the middle of a run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

from dsplan.allocator.blocks import (
    ADDRESS_BITS,
    ALLOCATED,
    FREE,
    Block,
    Pool,
    SegmentState,
    describe,
)
from dsplan.allocator.errors import OutOfDeviceMemory
from dsplan.allocator.events import PendingEvents
from dsplan.allocator.expandable import ExpandableSegments
from dsplan.allocator.fixed import FixedSegments, Placement
from dsplan.allocator.rounding import BLOCK_BYTES, SMALL_BYTES, round_size, segment_size
from dsplan.allocator.settings import AllocatorSettings
from dsplan.allocator.statistics import Statistics

UNLIMITED = 1 << 62

DEFAULT_SETTINGS = AllocatorSettings()


class CachingAllocator(Statistics):
    """One device's allocator; all sizes are bytes.

    Args:
        settings: what PYTORCH_ALLOC_CONF says.
        capacity_bytes: what the driver can hand out in total; None for no limit.
        cap_bytes: what torch.cuda.set_per_process_memory_fraction allows. Without it, and with
            ``settings.per_process_memory_fraction`` below 1, that share of ``capacity_bytes``. Beside refusing, a cap
            is what garbage_collection_threshold is a share of; without one torch collects nothing.

    Raises ValueError when the fraction is below 1 and neither limit is given.
    """

    def __init__(
        self,
        *,
        settings: AllocatorSettings = DEFAULT_SETTINGS,
        capacity_bytes: int | None = None,
        cap_bytes: int | None = None,
    ) -> None:
        super().__init__()
        if cap_bytes is None and settings.per_process_memory_fraction < 1:
            if capacity_bytes is None:
                raise ValueError("per_process_memory_fraction: a share of what? give capacity_bytes or cap_bytes")
            cap_bytes = int(settings.per_process_memory_fraction * capacity_bytes)
        self._settings = settings
        self._capacity = UNLIMITED if capacity_bytes is None else capacity_bytes
        self._cap = UNLIMITED if cap_bytes is None else cap_bytes
        self._max_split = UNLIMITED if settings.max_split_size_bytes is None else settings.max_split_size_bytes
        self._segments: FixedSegments | ExpandableSegments
        if settings.expandable_segments:
            granule = settings.large_segment_size_bytes
            self._segments = ExpandableSegments(self, large_granule_bytes=granule, capacity_bytes=capacity_bytes)
        else:
            self._segments = FixedSegments(self, capacity_bytes=capacity_bytes)
        self._collects = cap_bytes is not None and settings.garbage_collection_threshold > 0
        self._rounds_to_512 = max(settings.roundup_power2_divisions) <= 1
        # With none of the options that look further, the first block that is large enough is the one.
        self._takes_first = not (
            settings.expandable_segments or self._collects or settings.max_split_size_bytes is not None
        )
        self._small: dict[int, Pool] = {}
        self._large: dict[int, Pool] = {}
        self._large_calls = 0  # get_free_blocks_call_count of the large pool
        self._events = PendingEvents(self._free_block)
        self._pending = self._events.queues

    # What a program does.

    def allocate(self, size_bytes: int, stream: int = 0) -> Block:
        """A block for ``size_bytes`` (``malloc``, ``alloc_found_block``); 0 bytes take nothing.

        Raises OutOfDeviceMemory when releasing the cache does not make room, ValueError below zero.
        """
        if size_bytes <= 0:
            return _empty_block(size_bytes, stream)
        if self._pending:
            self._events.process()
        size = (size_bytes + 511) & -512 if self._rounds_to_512 else round_size(size_bytes, self._settings)
        pools = self._small if size <= SMALL_BYTES else self._large
        pool = pools.get(stream) or self._add_pool(pools, stream)
        keys, blocks = pool.keys, pool.blocks
        at = bisect_left(keys, size << ADDRESS_BITS)
        if not self._takes_first:
            at = self._suitable(pool, size, at)
        if at < len(keys):
            del keys[at]
            block = blocks.pop(at)
        else:
            block = self._new_block(pool, size, size_bytes)
            at = len(keys)
        whole = block.size_bytes
        remainder = whole - size
        if remainder >= pool.least_remainder and size < pool.split_below:
            rest = Block(pool, stream, block.address + size, remainder)
            rest.prev = block
            after = rest.next = block.next
            if after is not None:
                after.prev = rest
            block.next = rest
            block.size_bytes = whole = size
            rest.born_at_call = self._large_calls
            key = remainder << ADDRESS_BITS | rest.address
            at = bisect_left(keys, key, 0, at)  # the rest is smaller than what it was cut from
            keys.insert(at, key)
            blocks.insert(at, rest)
        block.state = ALLOCATED
        block.requested_bytes = size_bytes
        level = self.allocated_bytes = self.allocated_bytes + whole
        if level > self.peak_allocated_bytes:  # noqa: PLR1730 - a call to max is slower
            self.peak_allocated_bytes = level
        level = self.active_bytes = self.active_bytes + whole
        if level > self.peak_active_bytes:  # noqa: PLR1730
            self.peak_active_bytes = level
        level = self.requested_bytes = self.requested_bytes + size_bytes
        if level > self.peak_requested_bytes:  # noqa: PLR1730
            self.peak_requested_bytes = level
        return block

    def free(self, block: Block) -> None:
        """Take a block back (``free``). Used on other streams, it stays active until their events are done.

        Raises ValueError for a block that is free already.
        """
        if block.state != ALLOCATED:
            raise ValueError(f"{block!r} is freed twice")
        self.allocated_bytes -= block.size_bytes
        if block.stream_uses is not None:
            streams, block.stream_uses = block.stream_uses, None
            self._events.insert(block, streams)
        elif block.pool is not None:
            self._free_block(block)
        else:  # 0 bytes
            block.state = FREE

    def record_stream(self, block: Block, stream: int) -> None:
        """``stream`` uses the block too (``recordStream``); its own stream and empty blocks need no record.

        Raises ValueError for a block that is free.
        """
        if block.state != ALLOCATED:
            raise ValueError(f"{block!r} is free and cannot be recorded on stream {stream}")
        if stream == block.stream or block.pool is None:
            return
        if block.stream_uses is None:
            block.stream_uses = [stream]
        elif stream not in block.stream_uses:
            block.stream_uses.append(stream)

    def empty_cache(self) -> None:
        """Wait for all events and give unused segments back (``emptyCache``, ``release_cached_blocks``)."""
        self._events.synchronize()
        for pool in self._pools():
            self._segments.release(pool)

    def set_event_query(self, make_event: Callable[[int], object], is_done: Callable[[object], bool]) -> None:
        """How long other streams hold on to a freed block.

        ``make_event(stream)`` is called when the block is freed, for each stream it was recorded on;
        ``is_done(event)`` is asked at every allocation, in order for each stream up to the first that is not done.
        Without this call an event is done when it is first asked for, at the next allocation.
        """
        self._events.make_event, self._events.is_done = make_event, is_done

    def set_placement(self, placement: Placement) -> None:
        """Where cudaMalloc puts segments, from now on; without this call as ``DriverPlacement`` says.

        Raises ValueError with expandable segments, whose addresses follow from reservations.
        """
        if not isinstance(self._segments, FixedSegments):
            raise ValueError("expandable segments have no placement")
        self._segments.placement = placement

    def snapshot(self) -> list[SegmentState]:
        """Every segment with its blocks, by address (``snapshot``)."""
        return [
            state
            for _, head in sorted(self._segments.heads.items())
            if head.pool is not None
            for state in describe(head, is_large=head.pool.is_large)
        ]

    @property
    def inactive_split_bytes(self) -> int:
        """Free blocks whose segment is still in use; 0 with expandable segments, as torch counts (``free_block``)."""
        if self._settings.expandable_segments:
            return 0
        return sum(block.size_bytes for pool in self._pools() for block in pool.blocks if block.is_split)

    @property
    def num_segments(self) -> int:
        """Segments taken with cudaMalloc; expandable ones do not count (``stats.segment``)."""
        return 0 if self._settings.expandable_segments else len(self._segments.heads)

    # Pools.

    def _add_pool(self, pools: dict[int, Pool], stream: int) -> Pool:
        """The pool of a stream, with the thresholds of ``should_split``."""
        is_large = pools is self._large
        fine = not is_large or self._settings.expandable_segments
        pool = pools[stream] = Pool(
            stream,
            is_large=is_large,
            least_remainder=BLOCK_BYTES if fine else SMALL_BYTES + 1,
            split_below=UNLIMITED if fine else self._max_split,
        )
        return pool

    def _pools(self) -> Iterable[Pool]:
        yield from self._large.values()
        yield from self._small.values()

    def _suitable(self, pool: Pool, size: int, at: int) -> int:
        """``get_free_block``'s further rules: which block from ``at`` on may serve, or the number of blocks."""
        if self._collects and pool.is_large:
            self._large_calls += 1
        none = len(pool.blocks)
        if at == none:
            return none
        at = self._segments.pick(pool, at)
        found = pool.blocks[at].size_bytes
        if size < self._max_split:  # an oversize block is not for a smaller request
            return at if found < self._max_split else none
        return at if found < size + self._settings.max_non_split_rounding_bytes else none

    # Segments.

    def _new_block(self, pool: Pool, size: int, requested: int) -> Block:
        """A block that no pool had, in the order of ``malloc``: collect, allocate, release and try again."""
        if self._collects:
            threshold = int(self._settings.garbage_collection_threshold * self._cap)
            self._segments.collect(self._large.values(), self.reserved_bytes - threshold, self._large_calls)
        segment = segment_size(size, self._settings)
        block = self._alloc_block(pool, size, segment)
        if (
            block is None
            and self._max_split < UNLIMITED
            and self._segments.release_oversize(pool, size, self._max_split)
        ):
            block = self._alloc_block(pool, size, segment)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._alloc_block(pool, size, segment)
        if block is None:
            self.num_ooms += 1
            raise OutOfDeviceMemory(
                requested=requested,
                rounded=size,
                segment=segment,
                allocated=self.allocated_bytes,
                reserved=self.reserved_bytes,
                capacity=min(self._capacity, self._cap),
            )
        return block

    def _alloc_block(self, pool: Pool, size: int, segment: int) -> Block | None:
        """A block from the driver (``alloc_block``); None when the cap or the capacity forbids it."""
        if self.reserved_bytes + segment > self._cap:
            return None
        return self._segments.allocate(pool, size if self._settings.expandable_segments else segment)

    def _free_block(self, block: Block) -> None:
        """Join a block with its free neighbours and put it into its pool (``free_block``, ``try_merge_blocks``).

        The lower neighbour survives (in torch the block does), so that a segment's head stays one object.
        """
        pool = block.pool
        assert pool is not None  # blocks of 0 bytes do not come here
        keys, blocks = pool.keys, pool.blocks
        size = block.size_bytes
        self.active_bytes -= size
        self.requested_bytes -= block.requested_bytes
        block.state = FREE
        before, after = block.prev, block.next
        if before is not None and before.state == FREE:
            at = bisect_left(keys, before.size_bytes << ADDRESS_BITS | before.address)
            del keys[at], blocks[at]
            size = before.size_bytes = before.size_bytes + size
            before.next = after
            if after is not None:
                after.prev = before
            block = before
        if after is not None and after.state == FREE:
            at = bisect_left(keys, after.size_bytes << ADDRESS_BITS | after.address)
            del keys[at], blocks[at]
            size = block.size_bytes = size + after.size_bytes
            further = block.next = after.next
            if further is not None:
                further.prev = block
        block.born_at_call = self._large_calls
        key = size << ADDRESS_BITS | block.address
        at = bisect_left(keys, key)
        keys.insert(at, key)
        blocks.insert(at, block)


def _empty_block(size_bytes: int, stream: int) -> Block:
    """What 0 bytes get: no memory (``allocate`` returns a null pointer)."""
    if size_bytes < 0:
        raise ValueError(f"a block of {size_bytes} bytes")
    return Block(None, stream, 0, 0, ALLOCATED)

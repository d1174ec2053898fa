"""Pinned host memory: torch's CachingHostAllocator (aten/src/ATen/core/CachingHostAllocator.h).

A request is rounded up to a power of two; a freed block is kept and serves the next request of its size class. Blocks
are never split or merged, so the memory taken from the system only grows until ``empty_cache``.
"""

from __future__ import annotations

from collections import defaultdict

from dsplan.allocator.settings import AllocatorSettings
from dsplan.units import next_power_of_two


class PinnedBlock:
    """One pinned block: ``size_bytes`` as taken from the system, ``requested_bytes`` as asked for."""

    __slots__ = ("is_allocated", "requested_bytes", "size_bytes")

    def __init__(self, size_bytes: int, requested_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.requested_bytes = requested_bytes
        self.is_allocated = True


class PinnedAllocator:
    """The pinned blocks of one process, in bytes.

    Events of streams that copy from or to a block are taken as completed when it is freed.

    Attributes:
        allocated_bytes: what is held from the system, cached blocks included.
        active_bytes: what is handed out.
    """

    def __init__(self, *, settings: AllocatorSettings | None = None) -> None:
        settings = settings or AllocatorSettings()
        unlimited = 1 << 62
        cached, rounded = settings.pinned_max_cached_size_bytes, settings.pinned_max_round_threshold_bytes
        self._largest_cached = unlimited if cached is None else cached
        self._largest_rounded = min(self._largest_cached, unlimited if rounded is None else rounded)
        self._free: defaultdict[int, list[PinnedBlock]] = defaultdict(list)  # by size class (size_index)
        self.allocated_bytes = 0
        self.active_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_active_bytes = 0

    def allocate(self, size_bytes: int) -> PinnedBlock:
        """A block for ``size_bytes`` (``allocate``); 0 bytes take nothing. Raises ValueError below zero."""
        if size_bytes < 0:
            raise ValueError(f"a block of {size_bytes} bytes")
        if size_bytes == 0:
            return PinnedBlock(0, 0)
        size = next_power_of_two(size_bytes) if size_bytes <= self._largest_rounded else size_bytes
        cached = self._free[_size_class(size)]
        if cached:
            block = cached.pop()  # the last one freed
            block.requested_bytes = size_bytes
            block.is_allocated = True
        else:
            block = PinnedBlock(size, size_bytes)
            self.allocated_bytes += size
            self.peak_allocated_bytes = max(self.allocated_bytes, self.peak_allocated_bytes)
        self.active_bytes += block.size_bytes
        self.peak_active_bytes = max(self.active_bytes, self.peak_active_bytes)
        return block

    def free(self, block: PinnedBlock) -> None:
        """Give a block back to the cache (``maybe_cache_block``). Raises ValueError when it is free already."""
        if not block.is_allocated:
            raise ValueError(f"a pinned block of {block.size_bytes} bytes is freed twice")
        block.is_allocated = False
        size = block.size_bytes
        self.active_bytes -= size
        if size > self._largest_cached:
            self.allocated_bytes -= size
        elif size:
            self._free[_size_class(size)].append(block)

    def empty_cache(self) -> None:
        """Return every cached block to the system (``empty_cache``)."""
        self.allocated_bytes -= sum(block.size_bytes for blocks in self._free.values() for block in blocks)
        self._free.clear()

    def reset_peaks(self) -> None:
        """Start the peaks again at the present levels."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_active_bytes = self.active_bytes


def _size_class(size_bytes: int) -> int:
    """The exponent of the power of two that holds the size (``size_index``)."""
    return (size_bytes - 1).bit_length()

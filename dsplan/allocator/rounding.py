"""From a request to its block, and from a block to the segment it is cut from (bytes)."""

from __future__ import annotations

from dsplan.allocator.settings import NUM_INTERVALS, AllocatorSettings
from dsplan.units import MIB, round_up

BLOCK_BYTES = 512  # kMinBlockSize
SMALL_BYTES = MIB  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
LARGE_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a request gets a segment of its own
ROUND_LARGE_BYTES = 2 * MIB  # kRoundLarge

_FIRST_INTERVAL = 20  # kRoundUpPowerOfTwoStart: divisions are given for [2**20, 2**21), ...


def round_size(size_bytes: int, settings: AllocatorSettings) -> int:
    """The block for a request of at least 1 byte (``round_size``, ``roundup_power2_next_division``).

    A multiple of 512 B or, with roundup_power2_divisions, the next of that many even steps between powers of two.
    """
    if size_bytes < BLOCK_BYTES:
        return BLOCK_BYTES
    exponent = size_bytes.bit_length() - 1
    interval = min(max(exponent - _FIRST_INTERVAL, 0), NUM_INTERVALS - 1)
    divisions = settings.roundup_power2_divisions[interval]
    if divisions > 1 and size_bytes > BLOCK_BYTES * divisions:
        return round_up(size_bytes, (1 << exponent) // divisions)
    return round_up(size_bytes, BLOCK_BYTES)


def segment_size(size_bytes: int, settings: AllocatorSettings) -> int:
    """The segment for a block of ``size_bytes`` (``get_allocation_size``)."""
    if size_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < LARGE_BYTES:
        return settings.large_segment_size_bytes
    return round_up(size_bytes, ROUND_LARGE_BYTES)

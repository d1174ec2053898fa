"""The highest that the device's allocated memory has been in the whole run: what torch says when nobody resets it.

Phases have peaks of their own, but a real run's program does not notice that they begin (``runner.device.peaks``).
What DeepSpeed resets in its initialisation is not forgotten here: the first forward pass is above it.
"""

from __future__ import annotations

from runner.device.fake.memory import DeviceAllocator


class Highest:
    """Of ``allocator``, whose peaks somebody resets after having told it by :meth:`begin_phase`."""

    def __init__(self, allocator: DeviceAllocator) -> None:
        self._allocator = allocator
        self._before = 0

    def begin_phase(self) -> None:
        """The peaks are about to be reset."""
        self._before = max(self._before, self._allocator.peak_allocated_bytes)

    def room(self) -> int:
        """By how many bytes the level is below the highest so far."""
        return max(self._before, self._allocator.peak_allocated_bytes) - self._allocator.allocated_bytes

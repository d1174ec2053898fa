"""The allocator's counters, in torch's terms (``torch.cuda.memory_stats``, ``DeviceStats``)."""

from __future__ import annotations


class Statistics:
    """Levels and peaks in bytes, and counts.

    Attributes:
        allocated_bytes: blocks handed out, at their whole size.
        active_bytes: those, and freed blocks that another stream may still use.
        requested_bytes: what the tensors of the active blocks asked for.
        reserved_bytes: segments taken from the driver.
        num_alloc_retries: how often the cache was released for one allocation.
        num_ooms: how often that did not help.
    """

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.active_bytes = 0
        self.requested_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.peak_active_bytes = 0
        self.peak_requested_bytes = 0
        self.num_alloc_retries = 0
        self.num_ooms = 0

    def reset_peaks(self) -> None:
        """Start the peaks again at the present levels (``resetPeakStats``)."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes
        self.peak_active_bytes = self.active_bytes
        self.peak_requested_bytes = self.requested_bytes

    def _take(self, size_bytes: int) -> None:
        """The driver handed out ``size_bytes``."""
        self.reserved_bytes += size_bytes
        self.peak_reserved_bytes = max(self.reserved_bytes, self.peak_reserved_bytes)

"""What an allocator says when the device is full."""

from __future__ import annotations

from dsplan.units import GIB, KIB, MIB


class OutOfDeviceMemory(Exception):  # noqa: N818 - torch calls it OutOfMemoryError, without "Error" it reads as a state
    """The device, or the cap on it, cannot hold one more segment, even after the cache was given back.

    Attributes (all in bytes):
        requested: what the tensor asked for.
        rounded: what the allocator made of it (``round_size``).
        segment: the segment that was refused (``get_allocation_size``); torch's "Tried to allocate".
        allocated, reserved: the allocator's levels at that moment, after it released its cache.
        capacity: the limit that was hit, the smaller of the capacity and the cap.
    """

    def __init__(
        self, *, requested: int, rounded: int, segment: int, allocated: int, reserved: int, capacity: int
    ) -> None:
        self.requested = requested
        self.rounded = rounded
        self.segment = segment
        self.allocated = allocated
        self.reserved = reserved
        self.capacity = capacity
        super().__init__(
            f"CUDA out of memory. Tried to allocate {torch_size(segment)}. GPU has a total capacity of "
            f"{torch_size(capacity)} of which {torch_size(max(0, capacity - reserved))} is free. Of the allocated "
            f"memory {torch_size(allocated)} is allocated by PyTorch, and {torch_size(reserved - allocated)} is "
            "reserved by PyTorch but unallocated."
        )


def torch_size(size_bytes: int) -> str:
    """A size as torch's messages write it (``format_size`` in CUDACachingAllocator.cpp): ``"1.50 GiB"``."""
    if size_bytes <= KIB:
        return f"{size_bytes} bytes"
    for unit, factor, above in (("KiB", KIB, MIB), ("MiB", MIB, GIB)):
        if size_bytes <= above:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes / GIB:.2f} GiB"

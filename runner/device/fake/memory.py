"""What a rank holds, live: device memory through the allocator's emulation, pinned and pageable host memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dsplan.allocator import OutOfDeviceMemory, PinnedAllocator
from dsplan.errors import EXIT_OUT_OF_MEMORY, RunError
from dsplan.kernels import CUDA_BLOCK_BYTES
from dsplan.overhead import ProcessMemory
from dsplan.units import format_bytes

if TYPE_CHECKING:
    from runner.device.fake.events import Events

#: ``LOCKED`` is page-locked by mlock(2), outside of torch's pinned pool.
DEVICE, PINNED, LOCKED, PAGEABLE = "device", "pinned", "locked", "pageable"


class DeviceAllocator(Protocol):
    """What is asked of ``dsplan.allocator.CachingAllocator``, or of :class:`PlainAllocator`."""

    allocated_bytes: int
    peak_allocated_bytes: int

    def allocate(self, size_bytes: int, stream: int = 0) -> Any: ...

    def free(self, block: Any) -> None: ...

    def record_stream(self, block: Any, stream: int) -> None: ...

    def empty_cache(self) -> None: ...

    def reset_peaks(self) -> None: ...


class PlainBlock:
    """Bytes and nothing else."""

    __slots__ = ("size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class PlainAllocator:
    """Counts bytes as they are asked for: the CPU as a device has no caching allocator."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0

    def allocate(self, size_bytes: int, stream: int = 0) -> PlainBlock:  # noqa: ARG002
        self.allocated_bytes += size_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return PlainBlock(size_bytes)

    def free(self, block: PlainBlock) -> None:
        self.allocated_bytes -= block.size_bytes

    def record_stream(self, block: PlainBlock, stream: int) -> None:
        """There is one stream."""

    def empty_cache(self) -> None:
        """There is no cache."""

    def reset_peaks(self) -> None:
        self.peak_allocated_bytes = self.allocated_bytes


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something was allocated: the operator and the line of DeepSpeed, torch.optim or the model."""

    operator: str
    function: str
    where: str

    def __str__(self) -> str:
        """``ones_like in AdamW._init_group, torch/optim/adamw.py:120``."""
        function = f" in {self.function}" if self.function else ""
        return self.operator + function + (f", {self.where}" if self.where else "")


class Allocation:
    """Something that is held.

    ``counted_bytes``: of device memory the whole block, elsewhere what was asked for. ``tensor_bytes``: what was asked
    of the device, rounded as the allocator does before it looks for a block. ``event``: its number, where events are
    written.
    """

    __slots__ = ("block", "cause", "counted_bytes", "event", "place", "tensor_bytes")

    def __init__(self, place: str, block: Any, cause: int, counted_bytes: int, tensor_bytes: int = 0) -> None:
        self.tensor_bytes = tensor_bytes
        self.place = place
        self.block = block
        self.cause = cause
        self.counted_bytes = counted_bytes
        self.event = -1


@dataclass(frozen=True, slots=True)
class Peak:
    """The peak of a stretch of the log, in bytes and events so far; and of requests alone, their peak and level."""

    size_bytes: int
    event: int
    tensor_peak_bytes: int
    tensor_level_bytes: int


class Memory:
    """One rank's memory. ``stream`` is the number of the current stream, which allocations belong to;
    ``process_bytes`` is what the process itself has resident by now: more once it has used the device. ``events``
    hears of everything, where somebody wants to know.

    The log of device events is two arrays, a cause's number and the bytes that it took or, negative, gave
    back; what was live at a peak is added up from it when somebody asks.
    """

    def __init__(self, allocator: DeviceAllocator, process: ProcessMemory, events: Events | None = None) -> None:
        self.events = events
        self.allocator = allocator
        self.process = process
        self.pinned = PinnedAllocator()
        self.stream = 0
        self.process_bytes = process.start_bytes
        self.pageable_bytes = 0
        self.peak_pageable_bytes = 0
        self.locked_bytes = 0
        self.peak_locked_bytes = 0
        self.peak_host_bytes = 0
        self.causes: list[Cause] = []
        self._numbers: dict[Cause, int] = {}
        self._event_causes = array("i")
        self._event_bytes = array("q")
        self._peak_event = 0
        self._peak_bytes = 0
        self._rounding = 1 if isinstance(allocator, PlainAllocator) else CUDA_BLOCK_BYTES
        self._tensor_bytes = 0
        self._tensor_peak = 0

    def allocate(self, place: str, size_bytes: int, cause: Cause, dtype: str = "") -> Allocation:
        """Take ``size_bytes``.

        Raises:
            RunError: the device, or the cap on it, has no room; the message says who asked and what was held.
        """
        allocation = self._allocate(place, size_bytes, cause)
        if self.events is not None:
            allocation.event = self.events.taken(
                cause,
                place=place,
                size_bytes=allocation.counted_bytes,
                requested_bytes=size_bytes,
                dtype=dtype,
                stream=self.stream,
                address=getattr(allocation.block, "address", 0) if place == DEVICE else 0,
                levels=self.levels,
            )
        return allocation

    def _allocate(self, place: str, size_bytes: int, cause: Cause) -> Allocation:
        number = self._number(cause)
        if place == DEVICE:
            block = self._block(size_bytes, cause)
            self._log(number, block.size_bytes)
            if self.process_bytes < self.process.engine_bytes:
                self.set_process_bytes(self.process.engine_bytes)
            tensor_bytes = -(-size_bytes // self._rounding) * self._rounding
            self._tensor_bytes += tensor_bytes
            self._tensor_peak = max(self._tensor_peak, self._tensor_bytes)
            return Allocation(place, block, number, block.size_bytes, tensor_bytes)
        if place == PINNED:
            block = self.pinned.allocate(size_bytes)
        elif place == LOCKED:
            block = None
            self.locked_bytes += size_bytes
            self.peak_locked_bytes = max(self.peak_locked_bytes, self.locked_bytes)
        else:
            block = None
            self.pageable_bytes += size_bytes
            self.peak_pageable_bytes = max(self.peak_pageable_bytes, self.pageable_bytes)
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)
        return Allocation(place, block, number, size_bytes)

    def _block(self, size_bytes: int, cause: Cause) -> Any:
        try:
            return self.allocator.allocate(size_bytes, self.stream)
        except OutOfDeviceMemory as full:
            if self.events is not None:
                self.events.out_of_memory(cause, requested_bytes=size_bytes, stream=self.stream, levels=self.levels)
            raise RunError(
                f"{cause} asked for {format_bytes(full.requested)}, for which the allocator wanted "
                f"{format_bytes(full.segment)} more of the device; {format_bytes(full.allocated)} were allocated and "
                f"{format_bytes(full.reserved)} reserved of {format_bytes(full.capacity)}",
                EXIT_OUT_OF_MEMORY,
            ) from full

    def set_process_bytes(self, size_bytes: int) -> None:
        """The process has come to hold more, as libraries and kernels were loaded."""
        self.process_bytes = size_bytes
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)

    def free(self, allocation: Allocation) -> None:
        if allocation.place == DEVICE:
            self.allocator.free(allocation.block)
            self._tensor_bytes -= allocation.tensor_bytes
            self._log(allocation.cause, -allocation.counted_bytes)
        elif allocation.place == PINNED:
            self.pinned.free(allocation.block)
        elif allocation.place == LOCKED:
            self.locked_bytes -= allocation.counted_bytes
        else:
            self.pageable_bytes -= allocation.counted_bytes
        if self.events is not None:
            self.events.freed(
                allocation.event, place=allocation.place, size_bytes=allocation.counted_bytes, levels=self.levels
            )

    @property
    def levels(self) -> tuple[int, int]:
        """Allocated and reserved bytes of the device; without a caching allocator the same twice."""
        allocated = self.allocator.allocated_bytes
        return allocated, getattr(self.allocator, "reserved_bytes", allocated)

    @property
    def host_bytes(self) -> int:
        """What is resident: the process itself, pageable and locked bytes, and the pinned pool, which keeps what is
        freed."""
        return self.process_bytes + self.pageable_bytes + self.locked_bytes + self.pinned.allocated_bytes

    @property
    def num_events(self) -> int:
        return len(self._event_bytes)

    def reset_peaks(self) -> None:
        """Forget the peaks so far."""
        self.allocator.reset_peaks()
        self._peak_event = self.num_events
        self._peak_bytes = self.allocator.allocated_bytes
        self._tensor_peak = self._tensor_bytes

    def peak(self) -> Peak:
        """The device's peak since the last :meth:`reset_peaks`."""
        return Peak(self._peak_bytes, self._peak_event, self._tensor_peak, self._tensor_bytes)

    def live_at(self, events: Iterable[int]) -> dict[int, dict[Cause, tuple[int, int]]]:
        """What was live on the device when so many events had happened: events -> cause -> bytes, how many."""
        sizes: Counter[int] = Counter()
        counts: Counter[int] = Counter()
        found: dict[int, dict[Cause, tuple[int, int]]] = {}
        position = 0
        for end in sorted(set(events)):
            for number, size in zip(self._event_causes[position:end], self._event_bytes[position:end], strict=True):
                sizes[number] += size
                counts[number] += (size > 0) - (size < 0)
            position = end
            found[end] = {self.causes[number]: (size, counts[number]) for number, size in sizes.items() if size}
        return found

    def _log(self, number: int, size_bytes: int) -> None:
        self._event_causes.append(number)
        self._event_bytes.append(size_bytes)
        if self.allocator.allocated_bytes > self._peak_bytes:
            self._peak_bytes = self.allocator.allocated_bytes
            self._peak_event = len(self._event_bytes)

    def _number(self, cause: Cause) -> int:
        number = self._numbers.get(cause)
        if number is None:
            number = self._numbers[cause] = len(self.causes)
            self.causes.append(cause)
        return number

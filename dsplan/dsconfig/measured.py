"""What this package needs to know of an estimate, which is made above it: it is handed the function that makes one.

:class:`dsplan.estimate.PlanEstimate` is such a row, :func:`dsplan.estimate.estimate` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dsplan.plan import Plan


class DeviceMemory(Protocol):
    """Bytes on the worst rank's device; see :class:`dsplan.estimate.DeviceEstimate`."""

    @property
    def peak_bytes(self) -> int: ...
    @property
    def peak_step(self) -> str: ...
    @property
    def peak_phase(self) -> str: ...
    @property
    def peak_moment(self) -> str: ...
    @property
    def device_bytes(self) -> int: ...


class HostMemory(Protocol):
    """Bytes of the host; see :class:`dsplan.estimate.HostEstimate`."""

    @property
    def pinned_bytes(self) -> int: ...
    @property
    def bytes_per_node(self) -> int: ...


class LiveTerm(Protocol):
    """What is live at the peak; see :class:`dsplan.ledger.MemoryTerm`."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


class Row(Protocol):
    """One plan's estimate; ``terms``, where they were asked for, are the device's at its peak and the host's once
    all of its buffers exist."""

    @property
    def plan(self) -> Plan: ...
    @property
    def device(self) -> DeviceMemory: ...
    @property
    def host(self) -> HostMemory: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def terms(self) -> Sequence[LiveTerm]: ...


#: The estimate of one plan.
EstimateRow = Callable[[Plan], Row]

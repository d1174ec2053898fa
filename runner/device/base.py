"""What a run asks of a device: its name, and its memory now and at the peak since the last reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from runner.device.resident import Resident


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What the device says of itself; ``memory_bytes`` is the total that the driver reports."""

    kind: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Device memory now, in bytes.

    Attributes:
        allocated_bytes: what tensors hold, as the device's allocator counts it.
        reserved_bytes: what the allocator took from the device; None where there is no such thing.
        driver_bytes: what the driver shows as used; None where there is no driver.
    """

    allocated_bytes: int
    reserved_bytes: int | None
    driver_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakWindow:
    """The peaks since the last reset, in bytes."""

    allocated_bytes: int
    reserved_bytes: int | None


class Device(Protocol):
    """A kind of device, opened in the process that will run on it."""

    backend: str

    def info(self) -> DeviceInfo: ...

    def torch_device(self) -> torch.device: ...

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device of a tensor on the host."""

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def memory(self) -> Memory: ...

    def peak(self) -> PeakWindow: ...

    def reset_peak(self) -> None: ...

    def limit(self, size_bytes: int) -> None:
        """Let the allocator take at most this much of the device; ValueError where that cannot be done."""

    def pinned_bytes(self) -> int | None:
        """Host memory held by the pinned allocator, in bytes; None where it cannot be read."""

    def resident(self) -> Resident:
        """Host memory of this process from now on."""

    def phase_ended(self, name: str) -> None:
        """The phase is over and about to be read."""

    def step_ended(self) -> None:
        """All phases of a step have been read."""

    def extras(self) -> dict[str, Any]:
        """What the device adds to the rank's record."""

    def versions(self) -> dict[str, str]: ...

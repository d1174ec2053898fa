"""NVIDIA (and ROCm) devices: torch's caching allocator, and the driver through mem_get_info."""

from __future__ import annotations

import os
from typing import Any

import torch

from dsplan.errors import NoDeviceError
from runner.device.base import DeviceInfo, Memory, PeakWindow
from runner.device.peaks import cuda_peaks
from runner.device.resident import ProcessMemory


class CudaDevice:
    """The device of this local rank, as torch.cuda reports it.

    ``is_shared``: other ranks are on it too, so that what the driver shows is not this rank's.
    """

    backend = "nccl"

    def __init__(self, *, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        if not torch.cuda.is_available():
            raise NoDeviceError("device: cuda was asked for, but torch sees no CUDA device on this machine")
        self._device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(self._device)
        self._peaks = cuda_peaks(self._device)

    def info(self) -> DeviceInfo:
        properties = torch.cuda.get_device_properties(self._device)
        _, total = torch.cuda.mem_get_info(self._device)
        return DeviceInfo(kind="cuda", name=properties.name, memory_bytes=total)

    def torch_device(self) -> torch.device:
        return self._device

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.torch_device(), copy=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self._device)
        return Memory(
            allocated_bytes=torch.cuda.memory_allocated(self._device),
            reserved_bytes=torch.cuda.memory_reserved(self._device),
            driver_bytes=None if self._is_shared else total - free,
        )

    def peak(self) -> PeakWindow:
        return self._peaks.of_phase()

    def reset_peak(self) -> None:
        self._peaks.begin_phase()

    def limit(self, size_bytes: int) -> None:
        _, total = torch.cuda.mem_get_info(self._device)
        torch.cuda.set_per_process_memory_fraction(min(size_bytes / total, 1.0), self._device)

    def pinned_bytes(self) -> int | None:
        statistics = getattr(torch.cuda, "host_memory_stats", None)  # torch >= 2.6
        if statistics is None:
            return None
        return int(statistics().get("allocated_bytes.peak", 0))

    def resident(self) -> ProcessMemory:
        return ProcessMemory()

    def phase_ended(self, name: str) -> None:
        """Nothing is kept of a phase."""

    def step_ended(self) -> None:
        """As phase_ended."""

    def extras(self) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, str]:
        nccl = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
        return {"cuda": str(torch.version.cuda or torch.version.hip), "nccl": nccl}

"""Intel Gaudi, through DeepSpeed's accelerator interface (deepspeed/accelerator/hpu_accelerator.py).

No Gaudi card has confirmed this file yet: it is tested against a stand-in for habana's memory
interface, and the README says so.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from dsplan.errors import NoDeviceError
from runner.device.base import DeviceInfo, Memory, PeakWindow
from runner.device.resident import ProcessMemory


class HpuDevice:
    """The Gaudi of this local rank; collectives run over hccl."""

    backend = "hccl"

    def __init__(self) -> None:
        self._accelerator = get_accelerator()
        if self._accelerator.device_name() != "hpu" or not self._accelerator.is_available():
            raise NoDeviceError(
                "device: hpu was asked for, but DeepSpeed finds no Gaudi here (is habana_frameworks installed?)"
            )
        self._index = int(os.environ.get("LOCAL_RANK", "0"))

    def info(self) -> DeviceInfo:
        return DeviceInfo(kind="hpu", name="Gaudi", memory_bytes=int(self._accelerator.total_memory()))

    def torch_device(self) -> torch.device:
        return torch.device("hpu")

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.torch_device(), copy=True)

    def synchronize(self) -> None:
        self._accelerator.synchronize()

    def memory(self) -> Memory:
        # Habana's runtime takes the whole card at the start, so the driver's figure says nothing.
        return Memory(
            allocated_bytes=int(self._accelerator.memory_allocated()),
            reserved_bytes=int(self._accelerator.memory_reserved()),
            driver_bytes=None,
        )

    def peak(self) -> PeakWindow:
        return PeakWindow(
            allocated_bytes=int(self._accelerator.max_memory_allocated()),
            reserved_bytes=int(self._accelerator.max_memory_reserved()),
        )

    def reset_peak(self) -> None:
        self._accelerator.reset_peak_memory_stats()

    def limit(self, size_bytes: int) -> None:
        raise ValueError(f"the memory of this kind of device cannot be limited (asked for {size_bytes} bytes)")

    def pinned_bytes(self) -> int | None:
        return None

    def resident(self) -> ProcessMemory:
        return ProcessMemory()

    def phase_ended(self, name: str) -> None:
        """Nothing is kept of a phase."""

    def step_ended(self) -> None:
        """As phase_ended."""

    def extras(self) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, str]:
        try:
            return {"habana_frameworks": metadata.version("habana-torch-plugin")}
        except metadata.PackageNotFoundError:
            return {}

"""The CPU as a device: DeepSpeed's real engine over gloo, memory counted as live tensor storage.

On the CPU device and host are one pool, so the count covers parameters, gradients, optimizer
states, activations and everything that would be offloaded. It sees each tensor that an operator
returns, not what a kernel allocates and frees inside.
"""

from __future__ import annotations

import platform
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runner.device.base import DeviceInfo, Memory, PeakWindow
from runner.device.resident import ProcessMemory

_GLOO_S = 0.01


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of every storage that operators return, until the storage dies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._lock = threading.RLock()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        size = storage.nbytes()
        with self._lock:
            known = self._sizes.get(key)
            if known is None:
                weakref.finalize(storage, self._forget, key).atexit = False
            self._sizes[key] = size
            self.live_bytes += size - (known or 0)
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int) -> None:
        with self._lock:
            self.live_bytes -= self._sizes.pop(key, 0)


class CpuDevice:
    """This process's tensors; counting starts when the device is opened."""

    backend = "gloo"

    def __init__(self) -> None:
        self._counter = StorageCounter()
        self._counter.__enter__()  # type: ignore[no-untyped-call]

    def info(self) -> DeviceInfo:
        return DeviceInfo(kind="cpu", name=_cpu_name(), memory_bytes=psutil.virtual_memory().total)

    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.torch_device(), copy=True)

    def synchronize(self) -> None:
        """Operators are done when they return, but gloo's threads let go of a buffer a little after."""
        time.sleep(_GLOO_S)

    def memory(self) -> Memory:
        return Memory(allocated_bytes=self._counter.live_bytes, reserved_bytes=None, driver_bytes=None)

    def peak(self) -> PeakWindow:
        return PeakWindow(allocated_bytes=self._counter.peak_bytes, reserved_bytes=None)

    def reset_peak(self) -> None:
        self._counter.peak_bytes = self._counter.live_bytes

    def limit(self, size_bytes: int) -> None:
        raise ValueError(f"the memory of this kind of device cannot be limited (asked for {size_bytes} bytes)")

    def pinned_bytes(self) -> int | None:
        return 0

    def resident(self) -> ProcessMemory:
        return ProcessMemory()

    def phase_ended(self, name: str) -> None:
        """Nothing is kept of a phase."""

    def step_ended(self) -> None:
        """As phase_ended."""

    def extras(self) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, str]:
        return {}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

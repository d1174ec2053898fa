"""One protocol, one file per kind of device: how a run reads the memory of what it runs on."""

from __future__ import annotations

from runner.device.base import Device, DeviceInfo, Memory, PeakWindow
from runner.spec import RunSpec

__all__ = ["Device", "DeviceInfo", "Memory", "PeakWindow", "open_device"]


def open_device(spec: RunSpec) -> Device:
    """The device that ``spec`` names, ready to account the memory of this process and limited to its cap.

    Raises:
        ValueError: there is no such kind of device, or its memory cannot be limited.
        dsplan.errors.NoDeviceError: this machine has none of that kind.
        dsplan.errors.InputError: a dry run with versions that it is not tested with.
    """
    if spec.device == "fake":
        from runner.device.fake import open_fake_device

        return open_fake_device(spec)
    device = _real_device(spec)
    if spec.memory_cap_bytes is not None:
        device.limit(spec.memory_cap_bytes)
    return device


def _real_device(spec: RunSpec) -> Device:
    name = spec.device
    if name == "cuda":
        from runner.device.cuda import CudaDevice

        return CudaDevice(is_shared=spec.devices is not None)
    if name == "hpu":
        from runner.device.hpu import HpuDevice

        return HpuDevice()
    if name == "cpu":
        from runner.device.cpu import CpuDevice

        return CpuDevice()
    raise ValueError(f"device: unknown kind {name!r}; allowed: cuda, hpu, cpu, fake")

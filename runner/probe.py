"""Probe: levels and peaks of device and host memory around every phase of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dsplan.heap_threshold import fixed_threshold
from runner.device import Device

PHASES = ("init", "forward", "backward", "step")


class Probe:
    """Measures one rank: ``with probe.phase("forward"): ...`` around each phase.

    What is resident when it is made is the base that the model and the run come on top of. A phase that
    runs several times within a step (micro batches) keeps the level after its last run and the highest
    peak of all.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._resident = device.resident()
        self._phases: dict[str, dict[str, int | None]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._device.synchronize()
        before = self._device.memory()
        self._device.reset_peak()
        yield
        self._device.synchronize()
        self._device.phase_ended(name)
        after, peak = self._device.memory(), self._device.peak()
        seen = self._phases.setdefault(
            name, {"level_before_bytes": before.allocated_bytes, "peak_bytes": 0, "peak_reserved_bytes": None}
        )
        seen["level_bytes"] = after.allocated_bytes
        seen["reserved_bytes"] = after.reserved_bytes
        seen["device_bytes"] = after.driver_bytes
        seen["peak_bytes"] = max(seen["peak_bytes"] or 0, peak.allocated_bytes)
        if peak.reserved_bytes is not None:
            seen["peak_reserved_bytes"] = max(seen["peak_reserved_bytes"] or 0, peak.reserved_bytes)
        seen["rss_bytes"] = self._resident.now_bytes()

    def take(self) -> dict[str, dict[str, int | None]]:
        """The phases measured since the last call, by name."""
        gc.collect(0)
        phases, self._phases = self._phases, {}
        return phases

    def host(self) -> dict[str, Any]:
        """Resident memory of this process at first, now and at its peak; the pinned allocator's; what malloc keeps."""
        return {
            "base_rss_bytes": self._resident.base_bytes,
            "rss_bytes": self._resident.now_bytes(),
            "peak_rss_bytes": self._resident.peak_bytes(),
            "pinned_bytes": self._device.pinned_bytes(),
            "heap_free_bytes": self._resident.heap_free_bytes(),
            "mmap_threshold_bytes": fixed_threshold(),
        }

"""Resident memory of this process, as the kernel counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil


class Resident(Protocol):
    """Host memory of a rank's process, in bytes, from when it was made."""

    base_bytes: int

    def now_bytes(self) -> int: ...

    def peak_bytes(self) -> int | None:
        """The most since it was made; None where that cannot be read."""


class ProcessMemory:
    """This process. What is resident when it is made is the base that the run comes on top of."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        _forget_peak()
        self.base_bytes = self.now_bytes()

    def now_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def peak_bytes(self) -> int | None:
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii")
        except OSError:
            return None
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None


def _forget_peak() -> None:
    # proc(5), clear_refs: 5 resets VmHWM, which importing may have left higher than the base.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

"""Resident memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
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

    def heap_free_bytes(self) -> int | None:
        """What malloc keeps of memory that was freed; None where that cannot be asked."""


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

    def heap_free_bytes(self) -> int | None:
        return heap_free_bytes()


def heap_free_bytes() -> int | None:
    """What the C library keeps of memory that was freed, in bytes; None where it is not glibc from 2.33 on.

    glibc raises the size from which it maps memory apart to that of the largest block it has unmapped, 32 MiB at most
    (malloc/malloc.c, __libc_free: mp_.mmap_threshold). Weights below it then lie on the heap, which shrinks only from
    its top: after the model has moved to the device, gigabytes of them may stay resident, or nothing.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallinfo2.restype = _MallInfo
    except (OSError, AttributeError):
        return None
    return int(library.mallinfo2().fordblks)


class _MallInfo(ctypes.Structure):
    """mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _forget_peak() -> None:
    # proc(5), clear_refs: 5 resets VmHWM, which importing may have left higher than the base.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

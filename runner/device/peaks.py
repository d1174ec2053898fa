"""Peaks of phases on a device whose statistics the program resets and reads, too.

The probe begins a new peak with each phase. DeepSpeed begins one before it flattens a group of parameters
(runtime/utils.py, empty_cache), so that the highest of its initialisation would be lost; and inductor asks for the
highest so far, to see whether copies of what a kernel writes over fit below it while the kernel is timed
(torch/_inductor/runtime/triton_heuristics.py, copy_args_to_cpu_if_needed): where they do not, it pins host memory. So
each has a peak of its own, and a run that is measured does what it does when nobody measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from runner.device.base import PeakWindow

_NONE = (0, 0)


class Peaks:
    """The probe's peaks beside the program's.

    Args:
        read: the allocator's peaks since its last reset: (allocated, reserved) bytes.
        reset: begins them anew.
    """

    def __init__(self, read: Callable[[], tuple[int, int]], reset: Callable[[], None]) -> None:
        self._read = read
        self._reset = reset
        self._phase = _NONE
        self._program = _NONE

    def begin_phase(self) -> None:
        """The phase's peak begins; the program's goes on."""
        self._program = self._with(self._program)
        self._phase = _NONE
        self._reset()

    def of_phase(self) -> PeakWindow:
        """The peaks since the phase began."""
        allocated, reserved = self._with(self._phase)
        return PeakWindow(allocated_bytes=allocated, reserved_bytes=reserved)

    def begin_program(self) -> None:
        """The program's peak begins; the phase's goes on."""
        self._phase = self._with(self._phase)
        self._program = _NONE
        self._reset()

    def of_program(self) -> tuple[int, int]:
        """(allocated, reserved): the peaks since the program last reset them."""
        return self._with(self._program)

    def _with(self, earlier: tuple[int, int]) -> tuple[int, int]:
        allocated, reserved = self._read()
        return max(earlier[0], allocated), max(earlier[1], reserved)


def cuda_peaks(device: torch.device) -> Peaks:
    """The peaks of this process' CUDA device; from here on the program's resets and questions go through them."""
    reset, allocated, reserved = (
        torch.cuda.reset_peak_memory_stats,
        torch.cuda.max_memory_allocated,
        torch.cuda.max_memory_reserved,
    )
    peaks = Peaks(lambda: (allocated(device), reserved(device)), lambda: reset(device))

    def reset_peaks(*_: Any, **__: Any) -> None:
        peaks.begin_program()

    def max_allocated(*_: Any, **__: Any) -> int:
        return peaks.of_program()[0]

    def max_reserved(*_: Any, **__: Any) -> int:
        return peaks.of_program()[1]

    for module in (torch.cuda, getattr(torch, "accelerator", None)):
        for name, function in (
            ("reset_peak_memory_stats", reset_peaks),
            ("max_memory_allocated", max_allocated),
            ("max_memory_reserved", max_reserved),
        ):
            if hasattr(module, name):
                setattr(module, name, function)
    return peaks

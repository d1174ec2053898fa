"""runner.device.peaks: phases and the program each have a peak of their own."""

from __future__ import annotations

from runner.device.peaks import Peaks


class _Allocator:
    """As torch's counts: a level, and the highest since the last reset."""

    def __init__(self) -> None:
        self.level = self.peak = 0

    def holds(self, size: int) -> None:
        self.level = size
        self.peak = max(self.peak, size)

    def reset(self) -> None:
        self.peak = self.level


def _made() -> tuple[_Allocator, Peaks]:
    allocator = _Allocator()
    return allocator, Peaks(lambda: (allocator.peak, 2 * allocator.peak), allocator.reset)


def test_a_phase_keeps_what_was_highest_before_the_program_reset_the_statistics() -> None:
    # DeepSpeed's empty_cache() before its second group of parameters is flattened.
    allocator, peaks = _made()
    peaks.begin_phase()
    allocator.holds(600)
    allocator.holds(300)
    peaks.begin_program()
    allocator.holds(400)
    found = peaks.of_phase()
    assert (found.allocated_bytes, found.reserved_bytes) == (600, 1200)
    assert peaks.of_program() == (400, 800)


def test_the_program_does_not_notice_that_phases_begin() -> None:
    allocator, peaks = _made()
    allocator.holds(600)
    allocator.holds(100)
    peaks.begin_phase()
    allocator.holds(200)
    assert peaks.of_program() == (600, 1200)
    assert peaks.of_phase().allocated_bytes == 200
    peaks.begin_phase()
    allocator.holds(50)
    assert peaks.of_phase().allocated_bytes == 200  # the level that it began with
    peaks.begin_phase()
    assert peaks.of_phase().allocated_bytes == 50


def test_a_phase_begins_at_its_own_level() -> None:
    allocator, peaks = _made()
    allocator.holds(100)
    peaks.begin_program()
    peaks.begin_phase()
    assert peaks.of_phase().allocated_bytes == 100
    assert peaks.of_program() == (100, 200)

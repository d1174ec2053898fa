"""runner.device.fake.highest: the highest of the run, whatever phases begin."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from runner.device.fake.highest import Highest
from runner.device.fake.memory import PlainAllocator


def test_phases_that_begin_do_not_lower_it() -> None:
    allocator = PlainAllocator()
    highest = Highest(allocator)
    assert highest.room() == 0
    block = allocator.allocate(100)
    allocator.free(block)
    assert highest.room() == 100
    highest.begin_phase()
    allocator.reset_peaks()
    kept = allocator.allocate(30)
    assert highest.room() == 70
    allocator.allocate(90)
    assert highest.room() == 0
    allocator.free(kept)
    assert highest.room() == 30

"""runner.device.fake.memory: what is held, what was live at a peak, and what a full device says."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from dsplan.allocator import CachingAllocator
from dsplan.errors import EXIT_OUT_OF_MEMORY, RunError
from dsplan.overhead import ProcessMemory
from dsplan.units import MIB
from runner.device.fake.memory import DEVICE, PAGEABLE, PINNED, Cause, Memory, PlainAllocator

PROCESS = ProcessMemory(start_bytes=1000, engine_bytes=3000, steps_bytes=9000)
GRADIENT = Cause("zeros", "Engine.backward", "deepspeed/runtime/engine.py:1")
BUCKET = Cause("empty", "Optimizer.reduce", "deepspeed/runtime/zero/stage3.py:2")


@pytest.fixture
def plain() -> Memory:
    """Counts bytes as they are asked for."""
    return Memory(PlainAllocator(), PROCESS)


def test_the_peak_is_the_highest_level_since_it_was_reset(plain: Memory) -> None:
    first = plain.allocate(DEVICE, 100, GRADIENT)
    plain.free(plain.allocate(DEVICE, 50, GRADIENT))
    assert (plain.peak().size_bytes, plain.allocator.allocated_bytes) == (150, 100)
    plain.reset_peaks()
    assert plain.peak().size_bytes == 100
    plain.free(first)
    plain.free(plain.allocate(DEVICE, 70, BUCKET))
    assert plain.peak().size_bytes == 100  # it was held when the window began
    assert (plain.num_events, plain.allocator.allocated_bytes) == (6, 0)


def test_what_was_live_at_any_event_is_added_up_by_cause(plain: Memory) -> None:
    held = [plain.allocate(DEVICE, size, GRADIENT) for size in (100, 20)]
    plain.allocate(DEVICE, 7, BUCKET)
    highest = plain.peak()
    plain.free(held[0])
    live = plain.live_at([highest.event, 1, plain.num_events, 0])
    assert live == {
        0: {},
        1: {GRADIENT: (100, 1)},
        highest.event: {GRADIENT: (120, 2), BUCKET: (7, 1)},
        plain.num_events: {GRADIENT: (20, 1), BUCKET: (7, 1)},
    }
    assert highest.size_bytes == sum(size for size, _ in live[highest.event].values())


def test_a_cause_that_comes_again_is_kept_once(plain: Memory) -> None:
    for _ in range(3):
        plain.allocate(DEVICE, 1, Cause("zeros", "Engine.backward", "deepspeed/runtime/engine.py:1"))
    assert plain.causes == [GRADIENT]


def test_the_device_counts_blocks_and_requests_apart() -> None:
    memory = Memory(CachingAllocator(), PROCESS)
    held = memory.allocate(DEVICE, 1, GRADIENT)
    assert memory.allocator.allocated_bytes == held.counted_bytes == 512
    # A block of which less than 1 MiB would be left is not split: the allocator counts all of it.
    memory.free(memory.allocate(DEVICE, 20 * MIB, GRADIENT))
    memory.allocate(DEVICE, 20 * MIB - 600_000, GRADIENT)
    peak = memory.peak()
    assert memory.allocator.allocated_bytes == 512 + 20 * MIB
    assert peak.tensor_level_bytes == 512 + 20 * MIB - 600_000 // 512 * 512
    assert peak.tensor_peak_bytes == 512 + 20 * MIB


def test_an_allocation_belongs_to_the_current_stream() -> None:
    memory = Memory(CachingAllocator(), PROCESS)
    memory.free(memory.allocate(DEVICE, 8 * MIB, GRADIENT))
    memory.stream = 1
    memory.allocate(DEVICE, 8 * MIB, GRADIENT)
    assert getattr(memory.allocator, "reserved_bytes") == 2 * 20 * MIB  # noqa: B009  # not of the protocol


def test_pinned_memory_is_a_pool_of_powers_of_two_that_keeps_what_is_freed(plain: Memory) -> None:
    memory = plain
    memory.free(memory.allocate(PINNED, 5 * MIB, GRADIENT))
    assert memory.pinned.allocated_bytes == 8 * MIB
    memory.allocate(PINNED, 6 * MIB, GRADIENT)  # fits what was freed
    assert memory.pinned.allocated_bytes == 8 * MIB
    memory.allocate(PINNED, 6 * MIB, GRADIENT)
    assert memory.pinned.peak_allocated_bytes == 16 * MIB
    assert memory.allocator.allocated_bytes == memory.num_events == 0


def test_the_host_s_peak_has_the_process_pageable_and_pinned_memory(plain: Memory) -> None:
    plain.free(plain.allocate(PAGEABLE, 500, GRADIENT))
    assert (plain.host_bytes, plain.peak_host_bytes, plain.peak_pageable_bytes) == (1000, 1500, 500)
    plain.allocate(PINNED, MIB, GRADIENT)
    plain.set_process_bytes(4000)
    assert plain.host_bytes == plain.peak_host_bytes == 4000 + MIB
    assert plain.pageable_bytes == 0


def test_the_process_holds_more_once_the_device_was_used(plain: Memory) -> None:
    plain.allocate(PAGEABLE, 1, GRADIENT)
    assert plain.process_bytes == PROCESS.start_bytes
    plain.allocate(DEVICE, 1, GRADIENT)
    assert plain.process_bytes == PROCESS.engine_bytes
    plain.set_process_bytes(PROCESS.steps_bytes)
    plain.allocate(DEVICE, 1, GRADIENT)
    assert plain.process_bytes == PROCESS.steps_bytes


def test_a_full_device_names_who_asked_for_what_and_what_was_held() -> None:
    memory = Memory(CachingAllocator(cap_bytes=100 * MIB), PROCESS)
    memory.allocate(DEVICE, 60 * MIB, GRADIENT)
    with pytest.raises(RunError) as caught:
        memory.allocate(DEVICE, 50 * MIB - 1, BUCKET)
    assert caught.value.exit_code == EXIT_OUT_OF_MEMORY
    assert str(caught.value) == (
        "empty in Optimizer.reduce, deepspeed/runtime/zero/stage3.py:2 asked for 50.0 MiB, for which the allocator "
        "wanted 50.0 MiB more of the device; 60.0 MiB were allocated and 60.0 MiB reserved of 100.0 MiB"
    )
    assert memory.num_events == 1  # what was refused is not in the log
    memory.allocate(DEVICE, 40 * MIB, BUCKET)


def test_a_cause_without_an_owner_is_its_operator() -> None:
    assert str(Cause("workspace", "", "")) == "workspace"

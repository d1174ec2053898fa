"""runner.device.fake.explanation: what was live at the peak of every phase."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from dsplan.overhead import ProcessMemory
from runner.device.fake.explanation import Explanation
from runner.device.fake.memory import DEVICE, Cause, Memory, PlainAllocator

PARAMETERS = Cause("empty", "Init.partition", "deepspeed/runtime/zero/partition_parameters.py:1")
ACTIVATIONS = Cause("mm", "Linear.forward", "mingpt/model.py:2")
WORKSPACE = Cause("workspace", "", "CublasHandlePool.cpp")


@pytest.fixture
def memory() -> Memory:
    return Memory(PlainAllocator(), ProcessMemory(start_bytes=0, engine_bytes=0, steps_bytes=0))


def test_phases_come_in_order_of_time_each_with_its_largest_terms_first(memory: Memory) -> None:
    explanation = Explanation(memory)
    memory.allocate(DEVICE, 10, PARAMETERS)
    explanation.phase_ended("init")
    memory.reset_peaks()
    passing = [memory.allocate(DEVICE, size, ACTIVATIONS) for size in (20, 30)]
    memory.allocate(DEVICE, 5, WORKSPACE)
    for allocation in passing:
        memory.free(allocation)
    explanation.phase_ended("forward")
    explanation.step_ended()
    memory.reset_peaks()
    explanation.phase_ended("forward")
    init, first, second = explanation.to_document()
    assert [(found["step"], found["phase"], found["bytes"]) for found in (init, first, second)] == [
        ("init", "init", 10),
        ("0", "forward", 65),
        ("1", "forward", 15),
    ]
    assert first["terms"] == [
        {"cause": "mm in Linear.forward", "where": "mingpt/model.py:2", "bytes": 50, "count": 2},
        {"cause": "empty in Init.partition", "where": PARAMETERS.where, "bytes": 10, "count": 1},
        {"cause": "workspace", "where": "CublasHandlePool.cpp", "bytes": 5, "count": 1},
    ]
    assert [term["bytes"] for term in second["terms"]] == [10, 5]


def test_of_micro_batches_the_highest_peak_counts(memory: Memory) -> None:
    explanation = Explanation(memory)
    for size in (30, 80, 40):
        memory.reset_peaks()
        memory.free(memory.allocate(DEVICE, size, ACTIVATIONS))
        explanation.phase_ended("forward")
    (found,) = explanation.to_document()
    assert found["bytes"] == sum(term["bytes"] for term in found["terms"]) == 80

"""The formulas against the dry run on sixty random configurations; ``python -m tests.oracle`` takes more of them."""

from __future__ import annotations

import statistics
from functools import cache

import pytest

pytest.importorskip("deepspeed")

from dsplan.units import MIB
from tests.oracle.__main__ import describe, run
from tests.oracle.compare import Difference
from tests.oracle.grid import cases

COUNT, SEED, JOBS = 60, 2, 2


@cache
def found() -> tuple[Difference, ...]:
    """The differences; a configuration that cannot be dry-run fails the test."""
    differences = []
    for case, result in run(list(cases(COUNT, SEED)), JOBS):
        assert isinstance(result, Difference), f"{describe(case)}: {result}"
        differences.append(result)
    return tuple(differences)


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_peak_is_the_dry_run_s() -> None:
    errors = {each.case.name: each.error_percent for each in found()}
    assert len(errors) == COUNT
    assert statistics.median(map(abs, errors.values())) <= 0.05
    assert {name: error for name, error in errors.items() if not -0.5 <= error <= 2} == {}


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_so_is_the_peak_of_every_phase() -> None:
    phases = [(each, phase) for each in found() for phase in each.phases]
    errors = [100 * abs(phase.peak_error) / phase.found_peak for _, phase in phases]
    assert statistics.median(errors) <= 0.05
    far = [
        (describe(each.case), phase)
        for (each, phase), error in zip(phases, errors, strict=True)
        if error > 2 and abs(phase.peak_error) > 16 * MIB
    ]
    assert far == []


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_pinned_host_memory_is_the_dry_run_s() -> None:
    for each in found():
        assert abs(each.predicted_pinned - each.found_pinned) <= max(0.001 * each.found_pinned, 128 * 1024), each.case

"""DeepSpeed's profilers and timers in a dry run, which has no time: they divide by none, and take no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.dry_runs import Outcome, dry_runs
from tests.test_dry_run_coverage import BF16, spec, zero

pytestmark = pytest.mark.engine

PROFILERS: Mapping[str, dict[str, Any]] = {
    "none": {},
    "flops": {"flops_profiler": {"enabled": True, "profile_step": 1}},
    "comms": {"comms_logger": {"enabled": True, "verbose": True, "prof_all": True, "debug": False}},
    "timers": {"wall_clock_breakdown": True},
}


@pytest.fixture(scope="module")
def found() -> dict[str, Outcome]:
    """Three steps of rank 0, which is the one that profiles."""
    specs = {name: spec(BF16, zero(2), given, rank=0, steps=3) for name, given in PROFILERS.items()}
    return dict(dry_runs(specs))


@pytest.mark.parametrize("name", PROFILERS)
def test_a_profiler_leaves_memory_as_it_is(found: Mapping[str, Outcome], name: str) -> None:
    outcome, plain = found[name], found["none"]
    assert not isinstance(outcome, str), outcome
    assert not isinstance(plain, str), plain
    assert [step["phases"] for step in _without_host(outcome)] == [step["phases"] for step in _without_host(plain)]


def _without_host(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps, without the resident memory of the process."""
    return [
        {**step, "phases": {name: {**phase, "rss_bytes": 0} for name, phase in step["phases"].items()}}
        for step in record["steps"]
    ]

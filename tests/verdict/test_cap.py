"""What a plan says of a run under a cap on torch's allocator."""

from __future__ import annotations

import pytest

from dsplan.catalogue import accelerator
from dsplan.units import MIB
from dsplan.verdict.cap import live_terms, under_cap
from dsplan.verdict.judge import DOES_NOT_FIT, FITS
from dsplan.verdict.pressure import replay
from tests.verdict.plans import MODEL, PLANS, traced

H200 = accelerator("h200")


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3"])
def test_a_run_that_dies_is_told_where_and_of_what(name: str) -> None:
    roomy = under_cap(MODEL, PLANS[name], 2, H200, 8192 * MIB)
    assert (roomy.pressed.verdict, roomy.live) == (FITS, ())
    least = roomy.pressed.least_bytes
    assert least is not None
    for cap in (least - 40 * MIB, roomy.peak_bytes // 2):
        found = under_cap(MODEL, PLANS[name], 2, H200, cap)
        assert found.pressed.verdict == DOES_NOT_FIT
        assert found.pressed.moment is not None
        assert found.live == tuple(sorted(found.live, key=lambda item: -item[1]))
        assert 0 < sum(size for _, size in found.live) <= cap
        said = str(found)
        assert said.startswith("The plan had said: does not fit: ")
        assert found.live[0][0] in said
        assert found.pressed.moment.moment in said
        assert "\n" not in said


def test_what_is_live_adds_up_to_what_the_allocator_holds() -> None:
    trace = traced("zero2")
    died = replay(trace, 300 * MIB)
    assert died.died_at is not None
    named = sum(size for _, size in live_terms(trace, died.died_at))
    assert 0.7 * died.allocated_bytes < named <= died.allocated_bytes

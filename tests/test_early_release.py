"""What real runs held lies between the two dry runs: collectives that give back as late, and as early, as they can."""

from __future__ import annotations

import pytest

from dsplan.measurement import read_measurement
from dsplan.units import MIB
from tests.early_release import EARLIEST, LATEST, paths, released, steady_steps

BOUNDS = released()
#: Which blocks the allocator finds free also depends on what has been given back: a remainder of 1 MiB each.
REMAINDERS = 4 * MIB
LONG = "1.7B-z3-offload-param-ckpt-150-steps-n2"


def test_the_bounds_are_of_every_record_that_has_any() -> None:
    assert set(BOUNDS) == set(paths())


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_every_step_of_every_rank_lies_between(name: str) -> None:
    found = list(steady_steps(read_measurement(paths()[name])))
    assert found
    for step in found:
        for phase, measured in step.items():
            for size, least, most in zip(
                measured, BOUNDS[name][EARLIEST][phase], BOUNDS[name][LATEST][phase], strict=True
            ):
                assert least - REMAINDERS <= size <= most + REMAINDERS, (phase, measured)


def test_a_long_run_comes_to_both_ends() -> None:
    """148 steps of two ranks: the forward pass's level and peak, and to 2.5 % the backward pass's peak."""
    steps = list(steady_steps(read_measurement(paths()[LONG])))
    least, most = BOUNDS[LONG][EARLIEST], BOUNDS[LONG][LATEST]
    level, peak = ([step["forward"][which] for step in steps] for which in (0, 1))
    assert min(level) == pytest.approx(least["forward"][0], abs=MIB)
    assert max(level) == pytest.approx(most["forward"][0], abs=REMAINDERS)
    assert max(peak) == pytest.approx(most["forward"][1], abs=2 * MIB)
    assert max(step["backward"][1] for step in steps) == pytest.approx(most["backward"][1], rel=0.03)
    assert most["backward"][1] > 1.25 * least["backward"][1]

"""How much work a plan of 96 layers is, in calls of Python's functions: the same on every machine, busy or not."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.walk import walk
from tests.bench.subjects import DEEP, STAGES, forget, plan_of

#: What a plan that is made for the first time may be; it was an eighth less when this was written, and stage 3, whose
#: coordinator is most of it, three times as much before that.
MOST_CALLS = {0: 1875, 1: 2800, 2: 2650, 3: 9500}


def calls_of(stage: int, ranks: int = 8, model: ModelShape = DEEP) -> int:
    """Calls of Python's functions in a walk that finds every cache empty."""
    plan, fresh, count = plan_of(stage), replace(model), 0

    def listen(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    forget()
    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        walk(fresh, plan, ranks, Kernels())
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_is_no_more_work_than_it_was(stage: int) -> None:
    assert calls_of(stage) <= MOST_CALLS[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_more_ranks_are_no_more_work(stage: int) -> None:
    few, many = calls_of(stage, 8), calls_of(stage, 1024)
    assert many <= 1.15 * few  # stages 1 and 2 walk a few ranks, as many of 1,024 as of 8


@pytest.mark.parametrize("stage", STAGES)
def test_twice_the_layers_are_not_twice_the_work(stage: int) -> None:
    deeper = replace(DEEP, num_layers=2 * DEEP.num_layers)
    assert calls_of(stage, model=deeper) <= 1.4 * calls_of(stage)

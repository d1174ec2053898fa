"""Of what is as fast as the fastest the lowest stage is taken, and nothing that is slower than measurements scatter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.hardware import Cluster
from dsplan.search.result import Candidate
from dsplan.search.settled import ALIKE, settled
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.rates import machine
from dsplan.timing.step_time import step_time
from dsplan.workload import Workload
from tests.gpu.header import read_rows
from tests.regret import REPEATS
from tests.timing import profiles

MODEL, ON = preset("gpt2"), Cluster(accelerator=accelerator("h200"), gpus_per_node=2)
TIME = step_time(
    MODEL,
    find_plan(standard_plans(MODEL, Workload()), "zero1"),
    ON,
    machine(accelerator("h200"), profiles.profile()),
)


def candidates(*speeds: tuple[str, float]) -> list[Candidate]:
    plans = standard_plans(MODEL, Workload())
    return [
        Candidate(plan=find_plan(plans, name), cluster=ON, time=replace(TIME, tokens_per_s=speed))
        for name, speed in speeds
    ]


@pytest.mark.parametrize(
    ("speeds", "taken"),
    [
        ((("zero3", 100.0), ("zero1-ckpt", 98.5)), "zero1-ckpt"),
        ((("zero3", 100.0), ("zero1-ckpt", 97.5)), "zero3"),
        ((("zero2-offload", 100.0), ("zero3", 99.0)), "zero3"),
        ((("zero2", 100.0), ("zero1", 99.5), ("zero0", 97.0)), "zero1"),
        ((("zero1", 100.0), ("zero1-ckpt", 99.9)), "zero1"),
    ],
)
def test_the_lowest_stage_of_what_is_as_fast(speeds: tuple[tuple[str, float], ...], taken: str) -> None:
    ordered = candidates(*speeds)
    found = settled(ordered, "speed")
    assert found[0].plan.name == taken
    assert sorted(one.plan.name for one in found) == sorted(one.plan.name for one in ordered)
    for objective in ("headroom", "cost"):
        assert settled(ordered, objective) == ordered
    assert settled([], "speed") == []


def test_so_far_do_measurements_of_one_step_scatter() -> None:
    """Stages 1 and 2, which on one rank do the same: the device's steps, in turns on one card."""
    steps: dict[int, list[float]] = {}
    for row in read_rows(REPEATS):
        if row["micro_batch_size"] > 1:
            steps.setdefault(row["micro_batch_size"], []).append(row["seconds"])
    apart = [max(each) / min(each) - 1 for each in steps.values()]
    assert min(apart) < ALIKE
    assert max(apart) == pytest.approx(ALIKE, abs=0.005)

"""Strategies that need a drive, with a profile that has none: they are left out and said, and nothing else is."""

from __future__ import annotations

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.search.search import search
from dsplan.search.sweep import sweep
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.profile import Profile
from dsplan.workload import Workload
from tests.timing.profiles import profile

GPT2 = preset("gpt2")
PLANS = [find_plan(standard_plans(GPT2, Workload()), name) for name in ("zero2-ckpt", "zero3-nvme")]
CLUSTER = Cluster(accelerator=accelerator("a100-40gb"), gpus_per_node=2, host_memory_bytes=2**38)


@pytest.fixture
def bare() -> Profile:
    found = profile()
    found.document = {**found.document, "drive": []}
    return found


def test_a_search_says_what_it_has_no_times_for(bare: Profile) -> None:
    found = search(GPT2, PLANS, CLUSTER, profile=bare, sizes=(1, 2), vary=False)
    assert found.winner is not None
    assert found.winner.plan.name == "zero2-ckpt"
    (rejected,) = found.rejected
    assert rejected.strategy == "zero3-nvme"
    assert "no drive was measured" in rejected.why
    assert not any(one.plan.name == "zero3-nvme" for one in found.front)
    timed = search(GPT2, PLANS, CLUSTER, profile=profile(), sizes=(1, 2), vary=False)
    assert {one.plan.name for one in timed.ranked} == {"zero2-ckpt", "zero3-nvme"}


def test_a_sweep_has_its_memory_and_no_time(bare: Profile) -> None:
    grid = {"gpus": [2], "micro_batch_sizes": [1], "sequence_lengths": [128]}
    first, second = sweep(GPT2, PLANS, CLUSTER, accelerators=[accelerator("a100-40gb")], profile=bare, **grid)
    assert first.time is not None
    assert second.time is None
    assert second.weight.fits


def test_no_more_headroom_than_there_is_memory() -> None:
    with pytest.raises(InputError, match=r"headroom: 40.00 GiB is not allowed; it must be less than the 40.00 GiB of"):
        search(GPT2, PLANS, CLUSTER, profile=profile(), headroom_bytes=40 * 2**30)

"""Strategies: the plans that are compared, in the order that the recommendation reads."""

from __future__ import annotations

import pytest

from dsplan.errors import InputError
from dsplan.strategies import find_plan, standard_plans
from dsplan.workload import Workload

from .tapes import shape

MODEL = shape()
RESIDENT = ["zero0", "zero1", "zero2", "zero3"]
OFFLOADED = ["zero2-offload", "zero3-offload", "zero3-offload-param", "zero3-nvme"]


def names(workload: Workload) -> list[str]:
    return [plan.name for plan in standard_plans(MODEL, workload)]


def checkpointed(plans: list[str]) -> list[str]:
    return [f"{name}-ckpt" for name in plans]


def test_no_offload_comes_before_offload_and_no_recomputation_before_recomputation() -> None:
    assert names(Workload()) == [*RESIDENT, *checkpointed(RESIDENT), *OFFLOADED, *checkpointed(OFFLOADED)]


def test_an_optimizer_without_a_cpu_version_is_not_offloaded() -> None:
    assert names(Workload(optimizer="sgd")) == [*RESIDENT, *checkpointed(RESIDENT)]


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_a_kind_of_checkpointing_that_was_asked_for_is_the_only_one(kind: str) -> None:
    workload = Workload(activation_checkpointing=kind)
    plans = standard_plans(MODEL, workload, checkpointing_kind="torch")
    assert [plan.name for plan in plans] == [*checkpointed(RESIDENT), *checkpointed(OFFLOADED)]
    assert {plan.workload for plan in plans} == {workload}


def test_the_names_say_what_the_plans_do() -> None:
    for plan in standard_plans(MODEL, Workload(), checkpointing_kind="deepspeed", nvme_path="/scratch"):
        assert plan.name.startswith(f"zero{plan.zero.stage}")
        assert plan.name.endswith("-ckpt") == (plan.workload.activation_checkpointing == "deepspeed")
        assert plan.zero.offloads_optimizer == ("offload" in plan.name or "nvme" in plan.name)
        assert plan.zero.offloads_parameters == ("param" in plan.name or "nvme" in plan.name)
        sections = (plan.zero.offload_optimizer, plan.zero.offload_param)
        assert all((section.nvme_path == "/scratch") == (section.device == "nvme") for section in sections)


def test_buckets_fit_the_model() -> None:
    for plan in standard_plans(MODEL, Workload()):
        if plan.zero.stage:
            assert plan.zero.reduce_bucket_size == MODEL.num_parameters
        else:
            assert plan.zero.reduce_bucket_size == 500_000_000


def test_a_plan_is_found_by_its_name() -> None:
    plans = standard_plans(MODEL, Workload())
    assert find_plan(plans, "ZeRO3-offload").name == "zero3-offload"
    with pytest.raises(InputError, match=r"strategy: unknown value 'zero4'; did you mean zero"):
        find_plan(plans, "zero4")
    with pytest.raises(InputError, match="no plan to choose from"):
        find_plan([], "zero3")

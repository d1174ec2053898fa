"""What a command works on, read from its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsplan.cli.machine_input import read_machine_options
from dsplan.cli.model_input import read_model_options
from dsplan.cli.options import MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.plan_input import configured_plan, named_plan, strategy_plans
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One model on one cluster, and the plans to compare.

    Attributes:
        inferred: how the shape came out of a parameter count; None when it was given.
    """

    model: ModelShape
    inferred: str | None
    cluster: Cluster
    plans: tuple[Plan, ...]


def read_inputs(
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    *,
    ds_config: Path | None = None,
    plan: str | None = None,
    plan_flag: str = "--plan",
) -> Inputs:
    """The inputs of ``estimate`` and ``emit-config``.

    Args:
        model: which model.
        workload: how it is trained.
        machine: on what.
        ds_config: a DeepSpeed configuration in place of the strategies.
        plan: the one plan to keep; ``plan_flag`` asked for it.
        plan_flag: the flag that messages name.

    Raises:
        InputError: an option that is invalid, missing or contradicted by another.
    """
    found = read_model_options(model)
    cluster = read_machine_options(machine)
    if ds_config is not None:
        plans: tuple[Plan, ...] = (configured_plan(ds_config, workload, found.shape, cluster),)
    else:
        plans = strategy_plans(workload, found.shape, cluster, machine.nvme_path)
    if plan is not None:
        plans = (named_plan(plans, plan, plan_flag),)
    return Inputs(model=found.shape, inferred=found.inferred, cluster=cluster, plans=plans)

"""What a command works on, read from its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsplan.cli.machine_input import read_machine_options
from dsplan.cli.model_input import read_model_options
from dsplan.cli.options import MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.plan_input import configuration, named_plan, strategy_plans
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan

if TYPE_CHECKING:
    from dsplan.dsconfig.read import DsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One model on one cluster, and the plans to compare.

    Attributes:
        inferred: how the shape came out of a parameter count; None when it was given.
        ds_config: the configuration that the one plan was read from; None for the strategies.
    """

    model: ModelShape
    inferred: str | None
    cluster: Cluster
    plans: tuple[Plan, ...]
    ds_config: DsConfig | None = None


def read_inputs(
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    *,
    ds_config: Path | None = None,
    consumer: str | None = None,
    plan: str | None = None,
    plan_flag: str = "--plan",
) -> Inputs:
    """The inputs of ``estimate`` and ``emit-config``.

    Args:
        model: which model.
        workload: how it is trained.
        machine: on what.
        ds_config: a DeepSpeed configuration in place of the strategies.
        consumer: who hands it to DeepSpeed (``--for``); None is the script itself.
        plan: the one plan to keep; ``plan_flag`` asked for it.
        plan_flag: the flag that messages name.

    Raises:
        InputError: an option that is invalid, missing or contradicted by another.
    """
    if consumer is not None and ds_config is None:
        raise InputError(f"--for {consumer}: says who reads a DeepSpeed configuration; give one with --ds-config")
    found = read_model_options(model)
    cluster = read_machine_options(machine)
    read = None
    if ds_config is not None:
        read = configuration(ds_config, workload, found.shape, cluster, consumer=consumer)
        plans: tuple[Plan, ...] = (read.plan,)
    else:
        plans = strategy_plans(workload, found.shape, cluster, machine.nvme_path)
    if plan is not None:
        if plan_flag == "--plan" and read is None:
            plans = with_ddp(plans, plan, found.shape, plan_flag)
        elif names_ddp(plan):
            raise InputError(f"{plan_flag} {plan}: is torch's DDP, which reads no DeepSpeed configuration")
        plans = (named_plan(plans, plan, plan_flag),)
    return Inputs(model=found.shape, inferred=found.inferred, cluster=cluster, plans=plans, ds_config=read)


def with_ddp(plans: tuple[Plan, ...], name: str, model: ModelShape, flag: str) -> tuple[Plan, ...]:
    """``plans``, and torch's DDP where ``name`` asks for it, as ``flag`` has it: by name only, for nothing of it can be
    emitted.

    Raises:
        InputError: the model is no minGPT, or torch has no such optimizer.
    """
    if not names_ddp(name):
        return plans
    from dsplan.strategies import ddp_plans

    if model.decoder is not None:
        raise InputError(f"{flag} {name}: DDP is planned for minGPTs only, and {model.name} is none")
    return (*plans, *ddp_plans(plans[0].workload))


def names_ddp(name: str) -> bool:
    """Whether the name of a plan is meant for one of DDP's."""
    return name.strip().casefold().startswith("ddp")

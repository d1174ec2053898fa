"""Strategies: the plans that the table compares, fastest first.

The order is the recommendation's rule: no offload before offload, no recomputation before
recomputation, less communication before more (stages 0 to 2 move 2Ψ elements a step, stage 3 moves
3Ψ; ZeRO arXiv:1910.02054 §7). A plan further down is taken only when those above it do not fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dsplan.dsconfig.buckets import tuned, with_nvme_path
from dsplan.errors import InputError, choice
from dsplan.model import ModelShape
from dsplan.plan import CPU_OPTIMIZERS, Plan
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

_CPU = OffloadOptimizer(device="cpu")

#: The strategy without DeepSpeed; see :func:`ddp_plans`.
DDP = "ddp"

#: Strategies without checkpointing, fastest first; each also exists with the suffix ``-ckpt``.
_RESIDENT = {
    "zero0": ZeroConfig(stage=0),
    "zero1": ZeroConfig(stage=1),
    "zero2": ZeroConfig(stage=2),
    "zero3": ZeroConfig(stage=3),
}
_OFFLOADED = {
    "zero2-offload": ZeroConfig(stage=2, offload_optimizer=_CPU),
    "zero3-offload": ZeroConfig(stage=3, offload_optimizer=_CPU),
    "zero3-offload-param": ZeroConfig(stage=3, offload_optimizer=_CPU, offload_param=OffloadParam(device="cpu")),
    "zero3-nvme": ZeroConfig(
        stage=3, offload_optimizer=OffloadOptimizer(device="nvme"), offload_param=OffloadParam(device="nvme")
    ),
}
#: Those of Muon, whose momentum on a drive has no formula.
_IN_MEMORY = {name: zero for name, zero in _OFFLOADED.items() if zero.offload_optimizer.device != "nvme"}


def standard_plans(
    model: ModelShape,
    workload: Workload,
    *,
    checkpointing_kind: str = "torch",
    nvme_path: str | None = None,
) -> tuple[Plan, ...]:
    """Every strategy that the optimizer allows, without and with activation checkpointing.

    Bucket sizes are those that ``emit-config`` writes, so that a plan is what its configuration does.

    When ``workload`` asks for a kind of checkpointing, only plans of that kind are returned.
    """
    groups: list[dict[str, ZeroConfig]] = [_RESIDENT]
    if workload.optimizer in CPU_OPTIMIZERS:
        groups.append(_OFFLOADED if workload.optimizer != "muon" else _IN_MEMORY)
    kinds: tuple[str, ...] = ("none", checkpointing_kind)
    if workload.activation_checkpointing != "none":
        kinds = (workload.activation_checkpointing,)
    plans = []
    for group in groups:
        for kind in kinds:
            suffix = "" if kind == "none" else "-ckpt"
            plans += [
                Plan(
                    name=name + suffix,
                    zero=tuned(zero if nvme_path is None else with_nvme_path(zero, nvme_path), model),
                    workload=replace(workload, activation_checkpointing=kind),
                )
                for name, zero in group.items()
            ]
    return tuple(plans)


def ddp_plans(workload: Workload, *, checkpointing_kind: str = "torch") -> tuple[Plan, ...]:
    """torch's DistributedDataParallel with native AMP, without and with activation checkpointing; by name only.

    It is no row of the table: each of those is a DeepSpeed configuration that can be emitted and verified, and this
    is none.

    Raises:
        InputError: torch has no such optimizer.
    """
    kinds: tuple[str, ...] = ("none", checkpointing_kind)
    if workload.activation_checkpointing != "none":
        kinds = (workload.activation_checkpointing,)
    return tuple(
        Plan(
            name=DDP if kind == "none" else f"{DDP}-ckpt",
            ddp=True,
            workload=replace(workload, activation_checkpointing=kind),
        )
        for kind in kinds
    )


def find_plan(plans: Iterable[Plan], name: str) -> Plan:
    """The plan called ``name``; InputError with the nearest names when there is none."""
    by_name = {plan.name: plan for plan in plans}
    if not by_name:
        raise InputError("strategy: there is no plan to choose from")
    return by_name[choice("strategy", name, by_name)]

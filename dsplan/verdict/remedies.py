"""Remedies: what makes a plan need less of the device, cheapest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dsplan.plan import CPU_OPTIMIZERS, Plan
from dsplan.zero import OffloadOptimizer, OffloadParam

EXPANDABLE = "expandable_segments:True"
LAST_STAGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change, how much less of the device the run then needs (bytes), and the verdict with it."""

    change: str
    saved_bytes: int
    verdict: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change to try: the plan with it, and the allocator's settings with it."""

    change: str
    plan: Plan
    allocator: str


def proposals(plan: Plan, allocator: str, *, world_size: int) -> Iterator[Proposal]:
    """What to try, cheapest first: no cost, more communication, recomputation, smaller batches, offload."""
    zero, workload = plan.zero, plan.workload
    if "expandable_segments" not in allocator:
        settings = f"{allocator},{EXPANDABLE}" if allocator else EXPANDABLE
        yield Proposal(f"PYTORCH_CUDA_ALLOC_CONF={settings}", plan, settings)
    if world_size > 1:
        first = 1 if zero.stage == 0 else zero.stage + 1
        for stage in range(first, LAST_STAGE + 1):
            yield Proposal(f"ZeRO stage {stage}", replace(plan, zero=replace(zero, stage=stage)), allocator)
    if workload.activation_checkpointing == "none":
        changed = replace(workload, activation_checkpointing="torch")
        yield Proposal("activation checkpointing", replace(plan, workload=changed), allocator)
    if workload.micro_batch_size > 1:
        size = workload.micro_batch_size // 2
        changed = replace(
            workload,
            micro_batch_size=size,
            gradient_accumulation_steps=workload.gradient_accumulation_steps * workload.micro_batch_size // size,
        )
        steps = changed.gradient_accumulation_steps
        text = f"micro batch {size}, {steps} accumulation steps"
        yield Proposal(text, replace(plan, workload=changed), allocator)
    if workload.optimizer in CPU_OPTIMIZERS and not zero.offloads_optimizer:
        stage = max(zero.stage, 2)
        offloaded = replace(zero, stage=stage, offload_optimizer=OffloadOptimizer(device="cpu"))
        at = "" if stage == zero.stage else f" at stage {stage}"
        yield Proposal(f"the optimizer on the CPU{at}", replace(plan, zero=offloaded), allocator)
    if workload.optimizer in CPU_OPTIMIZERS and not zero.offloads_parameters:
        offloaded = replace(
            zero,
            stage=LAST_STAGE,
            offload_optimizer=zero.offload_optimizer if zero.offloads_optimizer else OffloadOptimizer(device="cpu"),
            offload_param=OffloadParam(device="cpu"),
        )
        at = "" if zero.stage == LAST_STAGE else " at stage 3"
        yield Proposal(f"optimizer and parameters on the CPU{at}", replace(plan, zero=offloaded), allocator)

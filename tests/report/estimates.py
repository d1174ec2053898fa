"""Estimates made by hand: the reports and the command line are tested without the formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dsplan.estimate import DOES_NOT_FIT, FITS, UNKNOWN, DeviceEstimate, Estimate, HostEstimate, PlanEstimate
from dsplan.hardware import Accelerator, Cluster
from dsplan.ledger import MemoryTerm, PhaseMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import GIB
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

CPU = OffloadOptimizer(device="cpu")
ZEROS = {
    "zero0": ZeroConfig(stage=0),
    "zero1": ZeroConfig(stage=1),
    "zero2": ZeroConfig(stage=2),
    "zero2-offload": ZeroConfig(stage=2, offload_optimizer=CPU),
    "zero3": ZeroConfig(stage=3),
    "zero3-offload": ZeroConfig(stage=3, offload_optimizer=CPU),
    "zero3-offload-param": ZeroConfig(stage=3, offload_optimizer=CPU, offload_param=OffloadParam(device="cpu")),
    "zero3-nvme": ZeroConfig(
        stage=3,
        offload_optimizer=OffloadOptimizer(device="nvme"),
        offload_param=OffloadParam(device="nvme"),
    ),
}
MODEL = ModelShape(name="gpt2", num_layers=12, hidden_size=768, num_attention_heads=12)


def standard_plans(model: ModelShape, workload: Workload, *, checkpointing_kind: str = "torch") -> tuple[Plan, ...]:
    """What dsplan.strategies gives, without tuned buckets."""
    return tuple(
        Plan(name=f"{name}{suffix}", zero=zero, workload=replace(workload, activation_checkpointing=kind))
        for name, zero in ZEROS.items()
        for suffix, kind in (("", "none"), ("-ckpt", checkpointing_kind))
    )


def estimate(
    model: ModelShape,
    plans: Sequence[Plan],
    cluster: Cluster,
    *,
    explain: bool = False,
    ladder: bool = True,
    closely: bool = False,
    exactly: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    **_how: object,
) -> Estimate:
    """An estimate in which every plan takes 10 GiB less than the one before, from 90 GiB on, and 10 at least."""
    rows = []
    for position, plan in enumerate(plans):
        rows.append(row(plan, cluster, peak_bytes=max(10, 90 - 10 * position) * GIB, explain=explain))
        if on_progress is not None:
            on_progress(position + 1, len(plans))
    recommended = next((found.plan.name for found in rows if found.verdict == FITS), None)
    reason = "no offload and the least communication" if recommended else "every plan is short of device memory"
    return Estimate(
        model=model, cluster=cluster, plans=tuple(rows), recommended=recommended, recommendation_reason=reason
    )


def row(plan: Plan, cluster: Cluster, *, peak_bytes: int, explain: bool = False) -> PlanEstimate:
    """One plan with the given peak, in the backward pass of the first step."""
    device = cluster.accelerator
    device_bytes = peak_bytes + GIB
    headroom = None if device is None or device.memory_bytes is None else device.memory_bytes - device_bytes
    verdict = UNKNOWN if headroom is None else FITS if headroom >= 0 else DOES_NOT_FIT
    return PlanEstimate(
        plan=plan,
        device=DeviceEstimate(
            phases={
                "init": PhaseMemory(level_bytes=GIB, peak_bytes=2 * GIB, peak_moment="engine initialisation"),
                "forward": PhaseMemory(level_bytes=3 * GIB, peak_bytes=4 * GIB, peak_moment="loss"),
                "backward": PhaseMemory(level_bytes=2 * GIB, peak_bytes=peak_bytes - 1, peak_moment="head"),
                "step": PhaseMemory(level_bytes=GIB, peak_bytes=3 * GIB, peak_moment="update"),
            },
            first_step={
                "forward": PhaseMemory(level_bytes=3 * GIB, peak_bytes=4 * GIB, peak_moment="loss"),
                "backward": PhaseMemory(level_bytes=2 * GIB, peak_bytes=peak_bytes, peak_moment="backward of block 11"),
                "step": PhaseMemory(level_bytes=GIB, peak_bytes=3 * GIB, peak_moment="update"),
            },
            peak_bytes=peak_bytes,
            peak_phase="backward",
            peak_step="first step",
            peak_moment="backward of block 11",
            steps_peak_bytes=peak_bytes,
            overhead_bytes=GIB // 2,
            device_bytes=device_bytes,
            device_bound_bytes=device_bytes,
        ),
        host=HostEstimate(pinned_bytes=GIB, pageable_bytes=2 * GIB, bytes_per_node=3 * GIB * cluster.gpus_per_node),
        verdict=verdict,
        reason="" if verdict != DOES_NOT_FIT else "the device is short in the backward pass",
        headroom_bytes=headroom,
        fits_on=("h200", "b200") if peak_bytes > 80 * GIB else ("a100-80gb", "h200", "b200"),
        max_micro_batch_size=None if headroom is None else 4 if headroom >= 0 else 0,
        terms=terms(peak_bytes) if explain else (),
    )


def terms(peak_bytes: int) -> tuple[MemoryTerm, ...]:
    """Two terms on the device that add up to ``peak_bytes``, and one on the host."""
    return (
        term("parameters", "device", peak_bytes - GIB, "e·Ψ"),
        term("activations", "device", GIB, "e·b·s·h"),
        term("fp32 master parameters (host)", "pinned", GIB, "4·P"),
    )


def term(name: str, place: str, size_bytes: int, formula: str) -> MemoryTerm:
    return MemoryTerm(
        name=name, place=place, size_bytes=size_bytes, num_tensors=2, formula=formula, source="ZeRO arXiv:1910.02054"
    )


def cluster(memory_gib: int | None = 80, gpus: int = 8) -> Cluster:
    """Eight devices of 80 GiB, or of no known kind with None."""
    device = None if memory_gib is None else Accelerator(name="big", label="Big GPU", memory_bytes=memory_gib * GIB)
    return Cluster(accelerator=device, gpus_per_node=gpus, host_memory_bytes=1024 * GIB)


def hand_made(*, memory_gib: int | None = 80, explain: bool = False) -> Estimate:
    """Every strategy for gpt2 on :func:`cluster`."""
    return estimate(MODEL, standard_plans(MODEL, Workload()), cluster(memory_gib), explain=explain)

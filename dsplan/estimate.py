"""Estimate: the memory of every plan, phase by phase, and which plan to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dsplan.catalogue import accelerators
from dsplan.hardware import Accelerator, Cluster
from dsplan.kernels import FLASH, kernels_of
from dsplan.ladder import largest_that_fits
from dsplan.ledger import MemoryTerm, PhaseMemory
from dsplan.model import ModelShape
from dsplan.overhead import PROCESS_HOST_BYTES, device_overhead, with_fragmentation
from dsplan.plan import Plan
from dsplan.recommend import recommend
from dsplan.units import format_bytes
from dsplan.walk import FIRST_STEP, STEADY_STATE, WalkResult, walk

FITS = "fits"
TIGHT = "tight"
DOES_NOT_FIT = "does not fit"
UNKNOWN = "unknown"

INIT = "init"
STAGE_THAT_CHECKS = 3  # whose overflow check of fp16 gradients loads kernels of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEstimate:
    """Memory of the worst rank's device, in bytes as torch counts allocated memory.

    Attributes:
        phases: ``init`` and the steady state's ``forward``, ``backward``, ``step``.
        first_step: ``forward``, ``backward``, ``step`` of the first step, where optimizer states
            are not there yet.
        peak_bytes: the maximum over initialisation and all steps.
        peak_phase: the phase of that peak.
        peak_step: ``init``, ``first step``, ``step 2``, ``step 3`` or ``steady state``.
        peak_moment: the moment within the phase ("backward of block 11").
        steps_peak_bytes: the maximum over the steps, initialisation apart.
        overhead_bytes: device memory outside the allocator (context, communication).
        device_bytes: what the driver shows at least at the peak: allocated and overhead.
        device_bound_bytes: the same with the fragmentation that a run under pressure has needed; ``fits`` means this.
    """

    phases: dict[str, PhaseMemory]
    first_step: dict[str, PhaseMemory]
    peak_bytes: int
    peak_phase: str
    peak_step: str
    peak_moment: str
    steps_peak_bytes: int
    overhead_bytes: int
    device_bytes: int
    device_bound_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEstimate:
    """Host memory: per rank pinned and pageable (peak bytes), and the total of a node."""

    pinned_bytes: int
    pageable_bytes: int
    bytes_per_node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEstimate:
    """One row of the table.

    Attributes:
        verdict: ``fits``; ``tight`` (the expected need fits, with fragmentation it may not);
            ``does not fit``; ``unknown`` (no device was named).
        reason: why it does not fit: which memory is short, by how much, at which moment.
        headroom_bytes: usable device memory minus ``device.device_bytes``; negative when short.
        fits_on: catalogued accelerators that it fits (always filled).
        max_micro_batch_size: the largest micro batch that fits; 0 when none does, None when unknown.
        terms: what is live at the peak, largest first (only when explained).
    """

    plan: Plan
    device: DeviceEstimate
    host: HostEstimate
    verdict: str
    reason: str
    headroom_bytes: int | None
    fits_on: tuple[str, ...]
    max_micro_batch_size: int | None
    terms: tuple[MemoryTerm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """All plans for one model on one cluster; ``recommended`` is a plan's name or None."""

    model: ModelShape
    cluster: Cluster
    plans: tuple[PlanEstimate, ...]
    recommended: str | None
    recommendation_reason: str


def estimate(
    model: ModelShape,
    plans: Sequence[Plan],
    cluster: Cluster,
    *,
    explain: bool = False,
    ladder: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Walk every plan and judge it.

    Args:
        model: the shape that is trained.
        plans: what to compare, fastest first (the order is the recommendation's).
        cluster: the machines; without an accelerator no plan gets a verdict of its own.
        explain: list the terms that are live at each plan's peak.
        ladder: find the largest micro batch that fits (needs an accelerator).
        on_progress: called with (plans done, plans in all).
    """
    rows = []
    for index, plan in enumerate(plans):
        rows.append(_estimate_plan(model, plan, cluster, explain=explain, ladder=ladder))
        if on_progress is not None:
            on_progress(index + 1, len(plans))
    name, reason = recommend([(row.plan.name, row.verdict, row.fits_on) for row in rows], cluster)
    return Estimate(model=model, cluster=cluster, plans=tuple(rows), recommended=name, recommendation_reason=reason)


def _estimate_plan(model: ModelShape, plan: Plan, cluster: Cluster, *, explain: bool, ladder: bool) -> PlanEstimate:
    _check_sequence(model, plan)
    result = walk(model, plan, cluster.world_size, kernels_of(cluster.accelerator))
    device = _device(model, plan, result, cluster)
    host = HostEstimate(
        pinned_bytes=result.pinned_bytes,
        pageable_bytes=result.pageable_bytes,
        bytes_per_node=cluster.gpus_per_node * (PROCESS_HOST_BYTES + result.host_bytes),
    )

    def overhead_on(card: Accelerator) -> int:
        return overhead_of(model, plan, card, cluster.world_size, result.pinned_bytes)

    verdict, reason, headroom = _judge(device, host, cluster)
    largest = None
    if ladder and cluster.accelerator is not None and cluster.accelerator.memory_bytes is not None:
        largest = _ladder(model, plan, cluster, fits=verdict == FITS)
    return PlanEstimate(
        plan=plan,
        device=device,
        host=host,
        verdict=verdict,
        reason=reason,
        headroom_bytes=headroom,
        fits_on=_cards(device, overhead_on),
        max_micro_batch_size=largest,
        terms=_terms(model, plan, cluster, device) if explain else (),
    )


def _check_sequence(model: ModelShape, plan: Plan) -> None:
    from dsplan.errors import InputError

    if plan.workload.sequence_length > model.max_position_embeddings:
        raise InputError(
            f"sequence_length: {plan.workload.sequence_length} tokens are more than the model's "
            f"{model.max_position_embeddings} positions; shorten the sequence or enlarge the positions"
        )


def overhead_of(
    model: ModelShape, plan: Plan, accelerator: Accelerator | None, world_size: int, pinned_bytes: int
) -> int:
    """Device memory of a rank outside torch's allocator, in bytes; see :func:`dsplan.overhead.device_overhead`."""
    workload = plan.workload
    kernel = kernels_of(accelerator).attention_kernel(element_bytes=workload.element_bytes, dropout=model.dropout)
    return device_overhead(
        accelerator,
        world_size,
        pinned_bytes=pinned_bytes,
        flash_attention=model.attention == "sdpa" and kernel == FLASH,
        fp16_stage3=plan.zero.stage == STAGE_THAT_CHECKS and workload.precision == "fp16",
    )


def _device(model: ModelShape, plan: Plan, result: WalkResult, cluster: Cluster) -> DeviceEstimate:
    by_name = {step.name: step for step in result.steps}
    highest = max(result.steps, key=lambda step: step.peak_bytes)
    phase = highest.peak_phase
    overhead = overhead_of(model, plan, cluster.accelerator, cluster.world_size, result.pinned_bytes)
    return DeviceEstimate(
        phases={INIT: by_name[INIT].phases[INIT], **by_name[STEADY_STATE].phases},
        first_step=by_name[FIRST_STEP].phases,
        peak_bytes=highest.peak_bytes,
        peak_phase=phase,
        peak_step=highest.name,
        peak_moment=highest.phases[phase].peak_moment,
        steps_peak_bytes=max(step.peak_bytes for step in result.steps if step.name != INIT),
        overhead_bytes=overhead,
        device_bytes=highest.peak_bytes + overhead,
        device_bound_bytes=with_fragmentation(highest.peak_bytes) + overhead,
    )


def _judge(device: DeviceEstimate, host: HostEstimate, cluster: Cluster) -> tuple[str, str, int | None]:
    """Verdict, reason and headroom on the cluster's own device and host."""
    accelerator = cluster.accelerator
    if accelerator is None or accelerator.usable_bytes is None:
        return UNKNOWN, "", None
    headroom = accelerator.usable_bytes - device.device_bytes
    if headroom < 0:
        where = f"in {device.peak_phase}, {device.peak_moment}"
        return DOES_NOT_FIT, f"the device is short by {format_bytes(-headroom)} {where}", headroom
    if cluster.host_memory_bytes is not None and host.bytes_per_node > cluster.host_memory_bytes:
        short = host.bytes_per_node - cluster.host_memory_bytes
        return DOES_NOT_FIT, f"the host is short by {format_bytes(short)} per node", headroom
    if device.device_bound_bytes > accelerator.usable_bytes:
        short = device.device_bound_bytes - accelerator.usable_bytes
        return TIGHT, f"fragmentation may need up to {format_bytes(short)} more than there is", headroom
    return FITS, "", headroom


def _cards(device: DeviceEstimate, overhead_on: Callable[[Accelerator], int]) -> tuple[str, ...]:
    """Catalogued accelerators on which the plan fits, smallest memory first."""

    def need(card: Accelerator) -> int:
        return device.device_bound_bytes - device.overhead_bytes + overhead_on(card)

    cards = [card for card in accelerators() if card.usable_bytes is not None and need(card) <= card.usable_bytes]
    return tuple(card.name for card in sorted(cards, key=lambda card: card.usable_bytes or 0))


def _ladder(model: ModelShape, plan: Plan, cluster: Cluster, *, fits: bool) -> int:
    def fits_with(micro_batch_size: int) -> bool:
        tried = replace(plan, workload=replace(plan.workload, micro_batch_size=micro_batch_size))
        result = walk(model, tried, cluster.world_size, kernels_of(cluster.accelerator))
        device = _device(model, tried, result, cluster)
        host = HostEstimate(
            pinned_bytes=result.pinned_bytes,
            pageable_bytes=result.pageable_bytes,
            bytes_per_node=cluster.gpus_per_node * (PROCESS_HOST_BYTES + result.host_bytes),
        )
        return _judge(device, host, cluster)[0] == FITS

    return largest_that_fits(fits_with, known=plan.workload.micro_batch_size, known_fits=fits)


def _terms(model: ModelShape, plan: Plan, cluster: Cluster, device: DeviceEstimate) -> tuple[MemoryTerm, ...]:
    target = (device.peak_step, device.peak_phase, device.peak_bytes)
    return walk(model, plan, cluster.world_size, kernels_of(cluster.accelerator), target=target).terms

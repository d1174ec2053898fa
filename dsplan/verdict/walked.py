"""Walked: one plan walked on the cluster, and what its verdict rests on."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from dsplan.hardware import Accelerator, Cluster
from dsplan.kernels import FLASH, kernels_of
from dsplan.ledger import MemoryTerm
from dsplan.model import ModelShape
from dsplan.overhead import device_overhead, with_fragmentation
from dsplan.plan import Plan
from dsplan.units import format_bytes
from dsplan.verdict.host import host_estimate, judge_host
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT, UNKNOWN, Pressed, firmly, fits_firmly, might_live, press
from dsplan.verdict.rows import DeviceEstimate, HostEstimate
from dsplan.verdict.swap import pool_bytes
from dsplan.walk import FIRST_STEP, STEADY_STATE, WalkResult, capacity_of, walk

if TYPE_CHECKING:
    from dsplan.verdict.judge import Candidates

INIT = "init"
#: Kinds of devices whose memory torch's caching allocator manages by the rules that are replayed.
REPLAYED = ("cuda", "rocm")
STAGE_THAT_CHECKS = 3  # whose overflow check of fp16 gradients loads kernels of its own


class Walked:
    """One plan walked on the cluster, and what its verdict rests on."""

    def __init__(self, model: ModelShape, plan: Plan, cluster: Cluster) -> None:
        self._model, self._plan, self._cluster = model, plan, cluster
        self._capacity = capacity_of(cluster.accelerator, cluster.world_size)
        kernels = kernels_of(cluster.accelerator)
        result = walk(model, plan, cluster.world_size, kernels, capacity_bytes=self._capacity)
        self._result = result
        self.device = device_estimate(model, plan, result, cluster)
        self.host = host_estimate(model, plan, cluster, result, kernels)

    def counted(self, *, however_large: bool) -> DeviceEstimate:
        """The device as its allocator counts; for a small model that takes some milliseconds more."""
        from dsplan.verdict.counted import counted

        model, plan, cluster = self._model, self._plan, self._cluster
        kernels = kernels_of(cluster.accelerator)
        result = counted(
            model,
            plan,
            cluster.world_size,
            kernels,
            self._result,
            capacity_bytes=self._capacity,
            however_large=however_large,
        )
        return self.device if result is self._result else device_estimate(model, plan, result, cluster)

    def terms(self, counted_bytes: int) -> tuple[MemoryTerm, ...]:
        """What is live at the walk's peak, and what the allocator counts beside it; together ``counted_bytes``."""
        from dsplan.verdict.counted import unsplit

        found = _terms(self._model, self._plan, self._cluster, self.device)
        rest = counted_bytes - self.device.peak_bytes
        return (*found, unsplit(rest)) if rest else found

    @property
    def offered_bytes(self) -> int | None:
        """What the device has for torch's allocator; None: not known, or no such allocator is replayed."""
        accelerator = self._cluster.accelerator
        if accelerator is None or accelerator.usable_bytes is None:
            return None
        if accelerator.kind not in REPLAYED:
            return None
        return accelerator.usable_bytes - self.device.overhead_bytes

    @cached_property
    def _candidates(self) -> Candidates:
        from dsplan.verdict.candidates import candidates

        cluster = self._cluster
        return candidates(self._model, self._plan, cluster.world_size, cluster.accelerator, cluster.allocator)

    def pressed(self, *, closely: bool = False) -> Pressed | None:
        """What replays of the allocator say; None where none is made."""
        offered = self.offered_bytes
        if offered is None:
            return None
        pressed = press(self._candidates, self.device.peak_bytes, offered, closely=closely)
        return firmly(pressed, self.device.peak_bytes, self._plan.workload.micro_batch_size, self._with_batch)

    def _with_batch(self, micro_batch_size: int) -> tuple[Candidates, int]:
        """The candidates and the allocated peak with another micro batch."""
        workload = replace(self._plan.workload, micro_batch_size=micro_batch_size)
        other = Walked(self._model, replace(self._plan, workload=workload), self._cluster)
        return other._candidates, other.device.peak_bytes

    def fits(self) -> bool:
        """Whether the verdict is ``fits``, with as few replays as that takes."""
        offered = self.offered_bytes
        if offered is None:
            return verdict_of(self.device, self.host, self._cluster, None)[0] == FITS
        if judge_host(self.host, self._cluster).verdict != FITS:
            return False
        size = self._plan.workload.micro_batch_size
        return fits_firmly(self._candidates, self.device.peak_bytes, offered, size, self._with_batch)

    def might_fit(self) -> bool:
        """Whether it lives with the margin less: half of what :meth:`fits` asks, of this micro batch alone."""
        offered = self.offered_bytes
        if offered is None:
            return self.fits()
        if judge_host(self.host, self._cluster).verdict != FITS:
            return False
        return might_live(self._candidates, self.device.peak_bytes, offered)

    def is_bounded(self) -> bool:
        """Whether it fits also with the fragmentation that runs under a cap have needed at most."""
        return verdict_of(self.device, self.host, self._cluster)[0] == FITS

    def is_possible(self) -> bool:
        """Whether the device has room for the allocated peak, and the node for the host's memory."""
        offered = self.offered_bytes
        if offered is None:
            return self.fits()
        return self.device.peak_bytes <= offered and judge_host(self.host, self._cluster).verdict != DOES_NOT_FIT


def overhead_of(
    model: ModelShape, plan: Plan, accelerator: Accelerator | None, world_size: int, pinned_bytes: int
) -> int:
    """Device memory of a rank outside torch's allocator, in bytes; see :func:`dsplan.overhead.device_overhead`.

    ``pinned_bytes`` is its page-locked host memory; the device maps what CUDA pins of it.
    """
    workload = plan.workload
    kernel = kernels_of(accelerator).attention_kernel(element_bytes=workload.element_bytes, dropout=model.dropout)
    return device_overhead(
        accelerator,
        world_size,
        pinned_bytes=pool_bytes(model, plan, world_size, pinned_bytes),
        flash_attention=model.attention == "sdpa" and kernel == FLASH,
        fp16_stage3=plan.zero.stage == STAGE_THAT_CHECKS and workload.precision == "fp16",
    )


def device_estimate(model: ModelShape, plan: Plan, result: WalkResult, cluster: Cluster) -> DeviceEstimate:
    """The worst rank's device as ``result`` has it, in bytes: each phase's peak, and what no allocator holds."""
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


def verdict_of(
    device: DeviceEstimate, host: HostEstimate, cluster: Cluster, pressed: Pressed | None = None
) -> tuple[str, str, int | None]:
    """Verdict, reason and headroom on the cluster's own device and host.

    Without ``pressed`` the fragmentation that runs under a cap have needed stands for the replay.
    """
    accelerator = cluster.accelerator
    if accelerator is None or accelerator.usable_bytes is None:
        return UNKNOWN, "", None
    headroom = accelerator.usable_bytes - device.device_bytes
    if headroom < 0:
        where = f"in {device.peak_phase}, {device.peak_moment}"
        verdict, reason = DOES_NOT_FIT, f"the device is short by {format_bytes(-headroom)} {where}"
    elif pressed is not None:
        verdict, reason, headroom = _judge_pressed(pressed, headroom)
    elif device.device_bound_bytes > accelerator.usable_bytes:
        short = device.device_bound_bytes - accelerator.usable_bytes
        verdict, reason = TIGHT, f"fragmentation may need up to {format_bytes(short)} more than there is"
    else:
        verdict, reason = FITS, ""
    on_host = judge_host(host, cluster)
    if on_host.outranks(verdict):
        verdict, reason = on_host.verdict, on_host.reason
    return verdict, reason, headroom


def _judge_pressed(pressed: Pressed, headroom: int) -> tuple[str, str, int]:
    """The same for a plan that was replayed; ``headroom`` is what it has above its allocated peak."""
    if pressed.need_bytes is not None:
        headroom = pressed.offered_bytes - pressed.need_bytes
    if pressed.verdict == DOES_NOT_FIT:
        return DOES_NOT_FIT, _fragmentation(pressed), min(headroom, -1)
    if pressed.verdict == FITS:
        return FITS, "", headroom
    if pressed.doubt:
        return TIGHT, pressed.doubt, headroom
    asked = format_bytes(pressed.margin_bytes)
    return TIGHT, f"{format_bytes(max(headroom, 0))} would be left, and fits asks for {asked}", headroom


def _fragmentation(pressed: Pressed) -> str:
    """Why a plan does not fit whose tensors would."""
    assert pressed.least_bytes is not None
    assert pressed.moment is not None
    short = format_bytes(max(pressed.least_bytes - pressed.offered_bytes, 0))
    return f"the device is short by {short} in {pressed.moment.where}: its tensors have room, but not in one piece"


def _terms(model: ModelShape, plan: Plan, cluster: Cluster, device: DeviceEstimate) -> tuple[MemoryTerm, ...]:
    target = (device.peak_step, device.peak_phase, device.peak_bytes)
    capacity = capacity_of(cluster.accelerator, cluster.world_size)
    kernels = kernels_of(cluster.accelerator)
    return walk(model, plan, cluster.world_size, kernels, target=target, capacity_bytes=capacity).terms

"""Host: whether a node has room for what its ranks hold outside the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dsplan import states
from dsplan.engine.base import Run
from dsplan.engine.muon_compiled import PROCESS_BYTES as COMPILED_PROCESS_BYTES
from dsplan.hardware import Cluster, HostLimits
from dsplan.heap_threshold import REMEDY
from dsplan.kernels import Kernels
from dsplan.ledger import Ledger, Term
from dsplan.model import ModelShape
from dsplan.overhead import PROCESS_HOST_BYTES
from dsplan.plan import Plan
from dsplan.sizes import Sizes
from dsplan.units import MIB, format_bytes
from dsplan.verdict.heap import kept_by_malloc
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT
from dsplan.verdict.rows import HostEstimate
from dsplan.verdict.swap import swapped
from dsplan.walk import Walk, WalkResult, capacity_of

#: deepspeed/env_report.py get_shm_size warns below it: NCCL connects the ranks of a node through files there.
SMALLEST_SHARED_BYTES = 512 * MIB
#: Of a rank's memory: less than this may be counted although it is not there at that moment.
LITTLE = 0.01


@dataclass(frozen=True, slots=True)
class HostVerdict:
    """``fits``, ``tight`` or ``does not fit``, and why."""

    verdict: str = FITS
    reason: str = ""

    def outranks(self, verdict: str) -> bool:
        """Whether this is worse than ``verdict`` of the device."""
        order = (FITS, TIGHT, DOES_NOT_FIT)
        return order.index(self.verdict) > order.index(verdict)


def host_estimate(
    model: ModelShape, plan: Plan, cluster: Cluster, walked: WalkResult, kernels: Kernels
) -> HostEstimate:
    """Host memory of each rank and of a node, in bytes.

    Expected is what the walk counts and a process as measured (:data:`dsplan.overhead.PROCESS_HOST_BYTES`); the bound
    adds what malloc may keep of the model (:mod:`dsplan.verdict.heap`), unless this machine is the node and its
    environment does not let it.
    """
    ranks = cluster.gpus_per_node
    limits = cluster.limits
    kept = kept_by_malloc(model, plan, threshold=None if limits is None else limits.mmap_threshold_bytes)
    highest = walked.host_bytes
    if kept:
        later = highest
        # While the model is built nothing of it has been freed. Where little is kept, it makes no difference.
        if kept > LITTLE * highest and highest <= _whole_model(model):
            later = _peak_after_building(model, plan, cluster, kernels)
        highest = max(highest, later + kept)
    found = swapped(model, plan, cluster.world_size)
    process = COMPILED_PROCESS_BYTES if plan.workload.optimizer == "muon" else PROCESS_HOST_BYTES
    return HostEstimate(
        pinned_bytes=walked.pinned_bytes,
        pageable_bytes=walked.pageable_bytes,
        bytes_per_node=ranks * (process + walked.host_bytes),
        bound_bytes_per_node=ranks * (process + highest),
        kept_bytes=kept,
        locked_bytes=found.locked_bytes,
        disk_bytes_per_node=tuple((folder, ranks * size) for folder, size in found.files),
    )


def judge_host(host: HostEstimate, cluster: Cluster) -> HostVerdict:
    """Whether the node has it: memory first, then what this machine lets a process have, where that was asked."""
    memory = cluster.host_memory_bytes
    if memory is not None and host.bytes_per_node > memory:
        return HostVerdict(DOES_NOT_FIT, f"the host is short by {format_bytes(host.bytes_per_node - memory)} per node")
    limits = cluster.limits
    if limits is not None and (short := _shortage(host, limits)):
        return HostVerdict(DOES_NOT_FIT, short)
    if memory is not None and host.bound_bytes_per_node > memory:
        short = format_bytes(host.bound_bytes_per_node - memory)
        return HostVerdict(
            TIGHT,
            f"malloc may keep up to {format_bytes(host.kept_bytes)} of the model that each rank built, and the host "
            f"would be short by {short}; {REMEDY} in the environment gives it back",
        )
    shared = None if limits is None else limits.shared_bytes
    if cluster.gpus_per_node > 1 and shared is not None and shared < SMALLEST_SHARED_BYTES:
        asked = format_bytes(SMALLEST_SHARED_BYTES)
        return HostVerdict(
            TIGHT,
            f"/dev/shm has {format_bytes(shared)}, and NCCL may need {asked} of it between the ranks of a node "
            "(docker: --shm-size=1g)",
        )
    return HostVerdict()


def _shortage(host: HostEstimate, limits: HostLimits) -> str:
    """What this machine does not let a rank lock, or has no disk for; empty: nothing."""
    locked = max(host.pinned_bytes, host.locked_bytes) if limits.locks_pinned_memory else host.locked_bytes
    if limits.locked_bytes is not None and locked > limits.locked_bytes:
        return (
            f"the host lets a process lock {format_bytes(limits.locked_bytes)} (ulimit -l), and each rank locks "
            f"{format_bytes(locked)}"
        )
    needed: dict[int, int] = {}
    sizes = dict(host.disk_bytes_per_node)
    for drive in limits.drives:
        needed[drive.file_system] = needed.get(drive.file_system, 0) + sizes.get(drive.folder, 0)
    for drive in limits.drives:
        if needed[drive.file_system] > drive.free_bytes:
            short = needed[drive.file_system] - drive.free_bytes
            return f"the drive of {drive.folder} on this host is short by {format_bytes(short)}"
    return ""


@lru_cache(maxsize=64)
def _whole_model(model: ModelShape) -> int:
    """More than is ever held while the model is built and cast: all in fp32, its masks, and one tensor twice."""
    largest = max(parameter.numel for parameter in model.parameters)
    masks = (model.num_layers + 1) * model.max_position_embeddings**2 if model.has_mask_buffer else 0
    return 4 * (model.num_parameters + 2 * largest + masks)


class _AfterBuilding(Ledger):
    """A ledger whose host peak begins anew whenever a part of the model that was built has gone."""

    def free_many(self, term: Term, sizes: Sizes | tuple[int, ...]) -> None:  # type: ignore[override]
        super().free_many(term, sizes)
        if term is states.HOST_MODEL:
            self.host_total_peak = sum(self.host_level.values())


def _peak_after_building(model: ModelShape, plan: Plan, cluster: Cluster, kernels: Kernels) -> int:
    """The walk's peak of a rank's host memory once the model has left the host, in bytes."""
    if plan.zero.builds_on_device:
        return 0
    ledger = _AfterBuilding(kernels)
    run = Run(
        model=model,
        plan=plan,
        world_size=cluster.world_size,
        kernels=kernels,
        ledger=ledger,
        capacity_bytes=capacity_of(cluster.accelerator, cluster.world_size),
    )
    Walk(run).take()
    return ledger.host_total_peak

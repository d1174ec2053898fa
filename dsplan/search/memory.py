"""Memory of a candidate, by one walk, and whether it fits by the closed bound on fragmentation.

``dsplan estimate`` replays the allocator where its verdict is close, which takes seconds for a deep model; a search
asks hundreds of times. The bound is what runs under a memory cap have needed (``overhead.with_fragmentation``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsplan.engine.muon_compiled import PROCESS_BYTES as COMPILED_PROCESS_BYTES
from dsplan.estimate import overhead_of
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.ledger import DEVICE, StepMemory
from dsplan.model import ModelShape
from dsplan.overhead import PROCESS_HOST_BYTES, with_fragmentation
from dsplan.plan import Plan
from dsplan.units import format_bytes
from dsplan.walk import WalkResult, capacity_of, walk

#: What the rounding of blocks may add to a straight line.
_ROUNDING = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Bytes that a candidate needs, and what it lacks.

    Attributes:
        device_bytes: what the driver shows at least at the peak.
        bound_bytes: the same with the fragmentation that runs have needed at most.
        host_bytes: of a node.
        usable_bytes: what the device offers.
        moment: where the peak is.
        peak: the step, phase and allocated bytes of it, as a walk is told to list its terms.
        short_of_host: the node has too little memory.
        why: what is short; empty when it fits.
    """

    device_bytes: int
    bound_bytes: int
    host_bytes: int
    usable_bytes: int
    moment: str
    peak: tuple[str, str, int]
    short_of_host: bool
    why: str

    @property
    def fits(self) -> bool:
        return not self.why

    @property
    def headroom_bytes(self) -> int:
        return self.usable_bytes - self.device_bytes


def weigh(model: ModelShape, plan: Plan, cluster: Cluster) -> Weight:
    """The memory of ``plan`` on ``cluster``, which names a device with memory of its own."""
    accelerator = cluster.accelerator
    assert accelerator is not None
    result = _walk(model, plan, cluster)
    peak, at = _highest(result.steps)
    overhead = overhead_of(model, plan, accelerator, cluster.world_size, result.pinned_bytes)
    process = COMPILED_PROCESS_BYTES if plan.workload.optimizer == "muon" else PROCESS_HOST_BYTES
    host = cluster.gpus_per_node * (process + result.host_bytes)
    return _judged(cluster, peak, overhead, host, f"{peak[1]}, {at}")


def _judged(cluster: Cluster, peak: tuple[str, str, int], overhead: int, host: int, moment: str) -> Weight:
    accelerator = cluster.accelerator
    assert accelerator is not None
    assert accelerator.usable_bytes is not None
    device, bound = peak[2] + overhead, with_fragmentation(peak[2]) + overhead
    why = ""
    short = cluster.host_memory_bytes is not None and host > cluster.host_memory_bytes
    if device > accelerator.usable_bytes:
        why = f"the device is short by {format_bytes(device - accelerator.usable_bytes)} in {moment}"
    elif short and cluster.host_memory_bytes is not None:
        why = f"the host is short by {format_bytes(host - cluster.host_memory_bytes)} per node"
    elif bound > accelerator.usable_bytes:
        why = f"fragmentation may need up to {format_bytes(bound - accelerator.usable_bytes)} more than there is"
    return Weight(
        device_bytes=device,
        bound_bytes=bound,
        host_bytes=host,
        usable_bytes=accelerator.usable_bytes,
        moment=moment,
        peak=peak,
        short_of_host=short,
        why=why,
    )


def largest_terms(
    model: ModelShape, plan: Plan, cluster: Cluster, weight: Weight, count: int
) -> tuple[tuple[str, int], ...]:
    """(name, bytes) of the largest terms at the peak of a plan of this weight, largest first: of what is short."""
    found = _walk(model, plan, cluster, weight.peak).terms
    terms = [term for term in found if (term.place != DEVICE) == (weight.short_of_host and weight.headroom_bytes >= 0)]
    ordered = sorted(terms, key=lambda term: (-term.size_bytes, term.name))
    return tuple((term.name, term.size_bytes) for term in ordered[:count])


def _walk(model: ModelShape, plan: Plan, cluster: Cluster, target: tuple[str, str, int] | None = None) -> WalkResult:
    accelerator, ranks = cluster.accelerator, cluster.world_size
    capacity = capacity_of(accelerator, ranks)
    return walk(model, plan, ranks, kernels_of(accelerator), capacity_bytes=capacity, target=target)


def _highest(steps: Sequence[StepMemory]) -> tuple[tuple[str, str, int], str]:
    """The step, phase and bytes of the highest peak, the first of several, and its moment."""
    found, at = ("", "", -1), ""
    for step in steps:
        for phase, memory in step.phases.items():
            if memory.peak_bytes > found[2]:
                found, at = (step.name, phase, memory.peak_bytes), memory.peak_moment
    return found, at


def reach(sizes: Sequence[int], second: int, first: Weight, other: Weight) -> int:
    """The index of the first micro batch that cannot fit by the line through ``sizes[0]`` and ``sizes[second]``."""
    slope = (other.bound_bytes - first.bound_bytes) / max(1, sizes[second] - sizes[0])
    room = first.usable_bytes * (1 + _ROUNDING) - first.bound_bytes
    if slope <= 0:
        return len(sizes)
    return sum(size - sizes[0] <= room / slope for size in sizes)

"""Fitting: whether a published run fits the card that it ran on, by the verdicts of ``dsplan.estimate``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsplan.estimate import DOES_NOT_FIT, INIT, HostEstimate, _device, _judge
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.ledger import PhaseMemory
from dsplan.model import ModelShape
from dsplan.overhead import PROCESS_HOST_BYTES
from dsplan.plan import Plan
from dsplan.replay.walking import walk_as
from dsplan.walk import WalkResult, walk

STAGES_THAT_FLATTEN = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The verdict (``fits``, ``tight`` or ``does not fit``), why, and what it rests on, in bytes.

    Attributes:
        device_bytes: allocated at the peak, and what lies outside the allocator.
        usable_bytes: what the card offers.
        host_bytes: of the node.
    """

    verdict: str
    reason: str
    device_bytes: int
    usable_bytes: int
    host_bytes: int

    @property
    def can_run(self) -> bool:
        return self.verdict != DOES_NOT_FIT


def fit(model: ModelShape, plan: Plan, cluster: Cluster) -> Fit:
    """Judge one plan on a cluster whose card is known."""
    accelerator = cluster.accelerator
    assert accelerator is not None
    assert accelerator.usable_bytes is not None
    kernels = kernels_of(accelerator)
    walked = (walk_as if plan.ddp else walk)(model, plan, cluster.world_size, kernels)
    if plan.zero.stage in STAGES_THAT_FLATTEN:
        walked = _flattened_on_the_host(walked)
    device = _device(model, plan, walked, cluster)
    host = HostEstimate(
        pinned_bytes=walked.pinned_bytes,
        pageable_bytes=walked.pageable_bytes,
        bytes_per_node=cluster.gpus_per_node * (PROCESS_HOST_BYTES + walked.host_bytes),
    )
    verdict, reason, _ = _judge(device, host, cluster)
    return Fit(
        verdict=verdict,
        reason=reason,
        device_bytes=device.device_bytes,
        usable_bytes=accelerator.usable_bytes,
        host_bytes=host.bytes_per_node,
    )


def _flattened_on_the_host(walked: WalkResult) -> WalkResult:
    """Where the device has no room for a second copy of the model, stages 1 and 2 flatten it on the host.

    stage_1_and_2.py, DeepSpeedZeroOptimizer.__init__: ``flatten_on_accelerator``. The copy is then no reason not to
    fit, so the initialisation counts with the level that it leaves.
    """
    init, *steps = walked.steps
    level = init.phases[INIT].level_bytes
    moved = replace(init, phases={INIT: PhaseMemory(level_bytes=level, peak_bytes=level, peak_moment="end")})
    return replace(walked, steps=(moved, *steps))

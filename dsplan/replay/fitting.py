"""Fitting: whether a published run fits the card that it ran on, by the verdicts of ``dsplan.estimate``."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.engine import engine_for
from dsplan.estimate import DOES_NOT_FIT, HostEstimate
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.model import ModelShape
from dsplan.overhead import PROCESS_HOST_BYTES
from dsplan.plan import Plan
from dsplan.replay.walking import Build, walk_as, walk_without_host_temporaries
from dsplan.verdict.walked import device_estimate, verdict_of
from dsplan.walk import capacity_of, walk

PARTITIONS_EVERYTHING = 3


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
        """Whether the run lives, with or without a margin."""
        return self.verdict != DOES_NOT_FIT


def fit(model: ModelShape, plan: Plan, cluster: Cluster, build: Build = engine_for) -> Fit:
    """Judge one plan on a cluster whose card is known; ``build`` makes DDP's engine."""
    accelerator = cluster.accelerator
    assert accelerator is not None
    assert accelerator.usable_bytes is not None
    kernels = kernels_of(accelerator)
    if plan.ddp:
        walked = walk_as(model, plan, cluster.world_size, kernels, build)
    elif plan.zero.stage == PARTITIONS_EVERYTHING:  # on whose device nothing depends on the capacity
        walked = walk_without_host_temporaries(model, plan, cluster.world_size, kernels)
    else:
        capacity = capacity_of(accelerator, cluster.world_size)
        walked = walk(model, plan, cluster.world_size, kernels, capacity_bytes=capacity)
    device = device_estimate(model, plan, walked, cluster)
    host = HostEstimate(
        pinned_bytes=walked.pinned_bytes,
        pageable_bytes=walked.pageable_bytes,
        bytes_per_node=cluster.gpus_per_node * (PROCESS_HOST_BYTES + walked.host_bytes),
    )
    verdict, reason, _ = verdict_of(device, host, cluster)
    return Fit(
        verdict=verdict,
        reason=reason,
        device_bytes=device.device_bytes,
        usable_bytes=accelerator.usable_bytes,
        host_bytes=host.bytes_per_node,
    )

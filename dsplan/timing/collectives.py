"""Seconds of a collective among N ranks, from one that was measured among fewer, or from a link's data sheet.

Of a ring of N ranks every rank sends (N-1)/N of the bytes, twice in an all-reduce, over N-1 steps, twice in an
all-reduce; the slowest link sets the pace (NCCL src/graph/tuning.cc, ncclTopoTuneModel). More steps than measured
cost NCCL's own latency of a step.
"""

from __future__ import annotations

from dsplan.hardware import Cluster
from dsplan.timing.grid import Line
from dsplan.timing.profile import Profile
from dsplan.timing.rates import Links

#: NCCL src/graph/tuning.cc, baseLat, ring with protocol Simple, in seconds.
BASE_S = 8.4e-6
#: The same, hwLat, ring with protocol Simple, in seconds: over NVLink, PCIe, network.
STEP_NVLINK_S, STEP_PCIE_S, STEP_NETWORK_S = 3.4e-6, 5.7e-6, 9.6e-6


def collective(profile: Profile, links: Links, cluster: Cluster, operator: str, size: float) -> float:
    """Seconds of ``all_reduce``, ``all_gather`` or ``reduce_scatter`` of ``size`` bytes in all.

    A single rank copies its part; NCCL does the same.
    """
    ranks = cluster.world_size
    if size <= 0:
        return 0.0
    if ranks == 1:
        # NCCL copies within the device where the two buffers differ, and does nothing where they are one.
        return 0.0 if operator == "all_reduce" else profile.elementwise("copy", "bf16", size / 2)
    passes = 2 if operator == "all_reduce" else 1
    moved = passes * (ranks - 1) / ranks * size
    steps, network_steps = passes * (ranks - cluster.num_nodes), passes * (cluster.num_nodes - 1)
    hop = STEP_NVLINK_S if links.nvlink else STEP_PCIE_S
    measured = _measured(profile, operator)
    if measured is None:
        within = BASE_S + steps * hop + moved / links.within_bytes_per_s
    else:
        line, measured_ranks = measured
        measured_moved = passes * (measured_ranks - 1) / measured_ranks
        within = line.at(moved / measured_moved)  # what moves as much per rank
        within += max(0, steps - passes * (measured_ranks - 1)) * hop
    if cluster.num_nodes == 1:
        return within
    return max(within, BASE_S + moved / links.between_bytes_per_s) + network_steps * STEP_NETWORK_S


def _measured(profile: Profile, operator: str) -> tuple[Line, int] | None:
    rows = [row for row in profile.document["collectives"] if row["operator"] == operator]
    if not rows:
        return None
    ranks = max(row["world_size"] for row in rows)

    def make() -> Line:
        return Line([(row["bytes"], row["seconds"]) for row in rows if row["world_size"] == ranks])

    return profile.once(("collective", operator), make), ranks

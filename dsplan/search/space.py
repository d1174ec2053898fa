"""What is searched: variations of each strategy, micro batches, and gradient accumulation to a wanted global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dsplan.errors import InputError, require_positive
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.zero import ZeroConfig

_LAST_STAGE = 3
#: Elements of buckets and thresholds beside those that ``tuned`` gives: DeepSpeed's defaults, and between.
_REDUCE_BUCKETS = (50_000_000, 100_000_000, 200_000_000, 500_000_000)
_PREFETCH_BUCKETS = (10_000_000, 50_000_000, 200_000_000)
_PERSISTENCE = (100_000, 1_000_000)


def variations(plan: Plan, model: ModelShape) -> Iterator[Plan]:
    """``plan`` itself, then with other buckets and thresholds; names stay the strategy's.

    ``overlap_comm`` is varied where DeepSpeed leaves it off (stages 1 and 2). Buckets beyond the model are left out.
    """
    yield plan
    zero = plan.zero
    if zero.stage == 0 or plan.ddp:
        return
    psi = model.num_parameters
    seen = {zero}
    for changes in _changes(zero):
        sizes = {key: min(value, psi) if "bucket" in key else value for key, value in changes.items()}
        made = replace(zero, **sizes)
        if made not in seen:
            seen.add(made)
            yield replace(plan, zero=made)


def _changes(zero: ZeroConfig) -> Iterator[dict[str, Any]]:
    for reduce in (zero.reduce_bucket_size, *_REDUCE_BUCKETS):
        if zero.stage < _LAST_STAGE:
            for overlap in (None, True):
                yield {"reduce_bucket_size": reduce, "overlap_comm": overlap}
            continue
        for prefetch in (zero.stage3_prefetch_bucket_size, *_PREFETCH_BUCKETS):
            for persistence in (zero.stage3_param_persistence_threshold, *_PERSISTENCE):
                yield {
                    "reduce_bucket_size": reduce,
                    "stage3_prefetch_bucket_size": prefetch,
                    "stage3_param_persistence_threshold": persistence,
                }


#: Micro batches beyond this are not looked for.
LARGEST_MICRO_BATCH = 8192


def micro_batches(chosen: tuple[int, ...] = ()) -> list[int]:
    """Micro batches to try: powers of two, and the quarters between them; or only those ``chosen``."""
    if chosen:
        return sorted(set(chosen))
    found, size = set(), 1
    while size <= LARGEST_MICRO_BATCH:
        found |= {size * quarters // 4 for quarters in range(4, 8)}
        size *= 2
    return sorted(found)


def accumulations(micro_batch_size: int, cluster: Cluster, global_batch_size: int | None, given: int) -> int | None:
    """Gradient accumulation steps: what makes up the global batch, None when no whole number does; else ``given``."""
    if global_batch_size is None:
        return given
    steps, rest = divmod(global_batch_size, micro_batch_size * cluster.world_size)
    return steps if steps and not rest else None


def check_global_batch(global_batch_size: int | None, cluster: Cluster) -> None:
    """Raise InputError unless the ranks can share the global batch evenly."""
    if global_batch_size is None:
        return
    require_positive("global_batch_size", global_batch_size)
    ranks = cluster.world_size
    if global_batch_size % ranks:
        below, above = global_batch_size // ranks * ranks, -(-global_batch_size // ranks) * ranks
        near = " or ".join(str(size) for size in (below, above) if size)
        raise InputError(
            f"global_batch_size: {global_batch_size} samples do not divide among {ranks} ranks; nearest: {near}"
        )


def with_batch(plan: Plan, micro_batch_size: int, steps: int) -> Plan:
    """``plan`` with these batch sizes."""
    workload = replace(plan.workload, micro_batch_size=micro_batch_size, gradient_accumulation_steps=steps)
    return replace(plan, workload=workload)


def fewer_devices(cluster: Cluster) -> tuple[Cluster, ...]:
    """The cluster with fewer nodes, or a single node with fewer devices: halves."""
    found, devices, nodes = [], cluster.gpus_per_node, cluster.num_nodes
    while nodes > 1:
        nodes //= 2
        found.append(replace(cluster, num_nodes=nodes))
    while devices > 1:
        devices //= 2
        found.append(replace(cluster, num_nodes=1, gpus_per_node=devices))
    return tuple(found)

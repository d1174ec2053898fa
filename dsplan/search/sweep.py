"""Sweep: every strategy over GPUs, kinds of GPU, micro batches and sequences: memory, verdict and time of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from dsplan.dsconfig.buckets import tuned
from dsplan.errors import InputError
from dsplan.hardware import Accelerator, Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.search.memory import Weight, weigh
from dsplan.search.space import with_batch
from dsplan.timing.profile import Profile
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import StepTime, step_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One plan of a sweep; ``time`` is None for a device without known rates."""

    plan: Plan
    cluster: Cluster
    weight: Weight
    time: StepTime | None


def sweep(
    model: ModelShape,
    plans: Sequence[Plan],
    cluster: Cluster,
    *,
    gpus: Sequence[int],
    accelerators: Sequence[Accelerator],
    micro_batch_sizes: Sequence[int],
    sequence_lengths: Sequence[int],
    profile: Profile | None = None,
    timed: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Point]:
    """Every combination, in the order of the arguments: devices, GPUs of a node, sequences, micro batches, plans.

    Args:
        model: what is trained; its positions must hold the longest sequence.
        plans: the strategies.
        cluster: nodes and host memory; GPUs and device are swept.
        profile: measured rates for every device; None takes the shipped ones, scaled by data sheets.
        timed: also compute step times.
        on_progress: called with (points done, points in all).

    Raises:
        InputError: a sequence longer than the model's positions, or a device without memory of its own.
    """
    longest = max(sequence_lengths)
    if longest > model.max_position_embeddings:
        raise InputError(
            f"sequence_length: {longest} tokens are more than the model's {model.max_position_embeddings} positions"
        )
    grid = list(product(accelerators, gpus, sequence_lengths, micro_batch_sizes, plans))
    machines = {device.name: _machine(device, profile) if timed else None for device in accelerators}
    for index, (device, count, length, size, plan) in enumerate(grid):
        if device.usable_bytes is None:
            raise InputError(f"accelerator: {device.name} has no memory of its own; it cannot be swept")
        on = replace(cluster, accelerator=device, gpus_per_node=count)
        tried = with_batch(plan, size, plan.workload.gradient_accumulation_steps)
        tried = replace(tried, workload=replace(tried.workload, sequence_length=length))
        tried = replace(tried, zero=tuned(tried.zero, model, world_size=on.world_size))
        of = machines[device.name]
        time = None if of is None else step_time(model, tried, on, of)
        yield Point(plan=tried, cluster=on, weight=weigh(model, tried, on), time=time)
        if on_progress is not None:
            on_progress(index + 1, len(grid))


def _machine(device: Accelerator, profile: Profile | None) -> Machine | None:
    try:
        return machine(device, profile)
    except InputError:  # memory is known all the same
        return None

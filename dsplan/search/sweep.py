"""Sweep: every strategy over GPUs, kinds of GPU, micro batches and sequences: memory, verdict and time of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from dsplan.dsconfig.buckets import tuned
from dsplan.errors import InputError
from dsplan.hardware import Accelerator, Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.search.memory import Weight, weigh
from dsplan.timing.profile import NoDriveError, Profile
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import StepTime, StepTimer
from dsplan.zero import ZeroConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One plan of a sweep; ``time`` is None for a device without known rates, and for a drive that has none."""

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
    for device in accelerators:
        if device.usable_bytes is None:
            raise InputError(f"accelerator: {device.name} has no memory of its own; it cannot be swept")
    machines = {device.name: _machine(device, profile) if timed else None for device in accelerators}
    batches = list(product(sequence_lengths, micro_batch_sizes, plans))
    done, total = 0, len(accelerators) * len(gpus) * len(batches)
    tried_on = {count: list(_tuned(batches, model, replace(cluster, gpus_per_node=count))) for count in gpus}
    for device, count in product(accelerators, gpus):
        on = replace(cluster, accelerator=device, gpus_per_node=count)
        of = machines[device.name]
        timer = None if of is None else StepTimer(model, on, of)
        for tried in tried_on[count]:
            yield Point(plan=tried, cluster=on, weight=weigh(model, tried, on), time=_time(timer, tried))
            done += 1
            if on_progress is not None:
                on_progress(done, total)


def _time(timer: StepTimer | None, plan: Plan) -> StepTime | None:
    if timer is None:
        return None
    try:
        return timer.of(plan)
    except NoDriveError:  # its memory is known all the same
        return None


def _tuned(batches: Iterable[tuple[int, int, Plan]], model: ModelShape, on: Cluster) -> Iterator[Plan]:
    """Each plan with its sequence and micro batch, and with buckets for the ranks."""
    zeros: dict[int, ZeroConfig] = {}
    for length, size, plan in batches:
        zero = zeros.get(id(plan))
        if zero is None:
            zero = zeros[id(plan)] = tuned(plan.zero, model, world_size=on.world_size)
        tried = _with_batch(plan, length, size)
        yield tried if zero == tried.zero else replace(tried, zero=zero)


def _with_batch(plan: Plan, sequence_length: int, micro_batch_size: int) -> Plan:
    workload = replace(plan.workload, sequence_length=sequence_length, micro_batch_size=micro_batch_size)
    return replace(plan, workload=workload)


def _machine(device: Accelerator, profile: Profile | None) -> Machine | None:
    try:
        return machine(device, profile)
    except InputError:  # memory is known all the same
        return None

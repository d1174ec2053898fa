"""Which buckets and thresholds of a plan were sized for another model, and what suits this one.

What suits is what :func:`dsplan.dsconfig.buckets.tuned` chooses. Nothing is replaced only because it is different.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from dsplan.dsconfig.buckets import tuned
from dsplan.dsconfig.measured import EstimateRow
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import ceil_div
from dsplan.zero import ZeroConfig

#: A size is too small when it is less than what suits by more than this factor.
TOO_SMALL = 4

_BELOW_3 = ("reduce_bucket_size", "allgather_bucket_size")
_STAGE_3 = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "sub_group_size",
)


def resized(
    plan: Plan, model: ModelShape, world_size: int, row: EstimateRow, *, keep: Collection[str] = ()
) -> Iterator[tuple[str, str, Plan]]:
    """(field, why, the plan with it) of each size to replace, each on top of the one before.

    A size is replaced when it is larger than suits and takes memory, or is larger than the whole model; when it is
    far smaller and the suitable one takes no more memory; or when DeepSpeed would stop at it.

    Args:
        plan: the plan whose sizes are looked at.
        model: the model that they should be for.
        world_size: data-parallel ranks.
        row: the estimate of a plan.
        keep: fields that stay whatever they hold.
    """
    while True:  # what one size costs can be hidden by another; each is replaced once at most
        for field, zero in _suitable(plan.zero, model):
            other = replace(plan, zero=zero)
            why = None if field in keep else _why(field, plan, other, model, world_size, row)
            if why is not None:
                break
        else:
            return
        plan = other
        yield field, why, plan


def _suitable(zero: ZeroConfig, model: ModelShape) -> Iterator[tuple[str, ZeroConfig]]:
    """``zero`` with each of its sizes in turn as it would be chosen; only those that differ."""
    if zero.stage == 0:
        return
    names = _STAGE_3 if zero.stage == 3 else _BELOW_3
    default = ZeroConfig()
    fresh = tuned(replace(zero, **{name: getattr(default, name) for name in names}), model)
    for name in names:
        if getattr(fresh, name) != getattr(zero, name):
            yield name, replace(zero, **{name: getattr(fresh, name)})
    if zero.offload_param.device == "nvme":
        # Enough for one rank is enough for any number; that is what is emitted.
        size = max(parameter.numel for parameter in model.parameters)
        if size != zero.offload_param.buffer_size:
            yield "offload_param", replace(zero, offload_param=replace(zero.offload_param, buffer_size=size))


def _why(field: str, plan: Plan, other: Plan, model: ModelShape, world_size: int, row: EstimateRow) -> str | None:
    """Why ``other`` is to be taken, whose ``field`` suits the model; None when ``plan``'s value may stay."""
    if field == "offload_param":
        size, suitable = (each.zero.offload_param.buffer_size for each in (plan, other))
        if size < ceil_div(suitable, world_size):
            return f"DeepSpeed stops: the largest partition has {ceil_div(suitable, world_size):,} elements"
    else:
        size, suitable = (getattr(each.zero, field) for each in (plan, other))
    before, after = row(plan), row(other)
    device = after.device.peak_bytes - before.device.peak_bytes
    host = after.host.bytes_per_node - before.host.bytes_per_node
    if device > 0 or host > 0:
        return None
    if size > suitable and size > model.num_parameters:
        return f"larger than the model's {model.num_parameters:,} parameters"
    if size > suitable and (device < 0 or host < 0):
        return "larger than suits the model, and takes memory"
    if size * TOO_SMALL < suitable:
        return "far smaller than suits the model, and more takes no more memory"
    return None

"""Options that buy speed with memory, and how much of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dsplan.check.configuration import ZERO, Configuration
from dsplan.check.finding import NOTE, Finding, Rule
from dsplan.check.planned import plan_of, ranks_of
from dsplan.check.rules.buckets import DEFAULT_BUCKET, WORTH_BYTES, element_bytes, has_bucket
from dsplan.errors import InputError
from dsplan.units import format_bytes

if TYPE_CHECKING:
    from dsplan.model import ModelShape
    from dsplan.plan import Plan
    from dsplan.zero import ZeroConfig

TRADE = Rule(
    id="DS803",
    name="memory-for-speed",
    severity=NOTE,
    summary="An option that changes nothing but speed, and the memory that it costs.",
)
RULES = (TRADE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trade:
    """An option of ``zero_optimization``.

    Attributes:
        key: dotted, as :class:`dsplan.zero.ZeroConfig` names it.
        lean: the value that saves the memory.
        buys: what the memory is for.
        host: whether it is memory of the host.
        unless: the key that speaks of the same memory where it is given.
    """

    key: str
    lean: Any
    buys: str
    host: bool = False
    unless: str = ""


#: What was looked at and is not here costs no memory of its own: round_robin_gradients (the order of the parameters),
#: reduce_scatter, allgather_partitions and allgather_bucket_size (in place), and wall_clock_breakdown and
#: memory_breakdown, which cost time. reduce_bucket_size and thresholds that gather everything have rules of their own.
_TRADES = (
    _Trade(key="overlap_comm", lean=False, buys="gradients are reduced while backward goes on"),
    _Trade(key="contiguous_gradients", lean=False, buys="gradients are reduced in large pieces from a bucket"),
    _Trade(key="stage3_prefetch_bucket_size", lean=0, buys="parameters are gathered ahead of their use"),
    _Trade(
        key="stage3_max_live_parameters",
        lean=0,
        buys="more parameters are gathered ahead of their use",
        unless="stage3_prefetch_bucket_size",  # fetch_sub_module: it bounds nothing but prefetching
    ),
    _Trade(key="stage3_max_reuse_distance", lean=0, buys="parameters that are soon used again stay gathered"),
    _Trade(key="stage3_param_persistence_threshold", lean=0, buys="small parameters are never gathered"),
    _Trade(key="sub_group_size", lean=10**8, buys="the update takes fewer, larger steps"),
    _Trade(key="offload_optimizer.pin_memory", lean=False, buys="copies do not wait for the host", host=True),
    _Trade(key="offload_param.pin_memory", lean=False, buys="copies do not wait for the host", host=True),
)
_PREFIX = "stage3_"


def trades(config: Configuration) -> Iterator[Finding]:
    """Every such option that the file gives, weighed by estimating the plan with and without it, each by itself.

    An estimate takes as long as all other rules together, so that options are weighed only for those who see notes.

    Source: ``runtime/zero/stage_1_and_2.py`` (``setup_buckets``: a second bucket with overlap_comm),
    ``runtime/zero/stage3.py`` (``_setup_for_real_optimizer``, ``_create_fp16_sub_groups``),
    ``runtime/zero/partitioned_param_coordinator.py`` (``fetch_sub_module``, ``release_sub_module``),
    ``runtime/zero/parameter_offload.py`` (``mark_persistent_parameters``); pinned blocks are powers of two
    (torch ``CachingHostAllocator``).
    """
    if not config.stage:
        return
    model = config.run.model if config.run.notes else None
    try:
        plan = None if model is None else plan_of(config, model)
    except InputError:
        plan = None
    if plan is None or model is None:
        yield from _second_bucket(config)
    else:
        yield from _weighed(config, model, plan)


def secondary_partition(config: Configuration) -> Iterator[Finding]:
    """Every node keeps the parameters once more.

    Source: ``runtime/zero/partition_parameters.py`` (``_partition_param_sec``: on ``remote_device``).
    """
    size, model = config.zero("zero_hpz_partition_size"), config.run.model
    if model is None or config.stage != 3 or isinstance(size, bool) or not isinstance(size, int) or size < 2:
        return
    cost = model.num_parameters * element_bytes(config) // size
    where = "device" if config.zero("offload_param.device", "none") == "none" else "host"
    buys = "parameters are gathered within the node"
    if cost >= WORTH_BYTES:
        yield _finding(config, "zero_hpz_partition_size", cost, where, buys, "1")


def _second_bucket(config: Configuration) -> Iterator[Finding]:
    """What the file alone says: with overlap_comm stages 1 and 2 have two buckets."""
    size = config.zero("reduce_bucket_size", DEFAULT_BUCKET)
    if config.stage not in (1, 2) or config.zero("overlap_comm") is not True or not has_bucket(config, config.stage):
        return
    if isinstance(size, int | float) and not isinstance(size, bool) and size > 0:
        cost = int(size) * element_bytes(config)
        if cost >= WORTH_BYTES:
            buys = "gradients are reduced while backward goes on"
            yield _finding(config, "overlap_comm", cost, "device", buys, "false")


def _weighed(config: Configuration, model: ModelShape, plan: Plan) -> Iterator[Finding]:
    given = [(trade, name) for trade in _TRADES for name in (_name(config, trade.key),) if name]
    base: tuple[int, int] | None = None
    for trade, name in given:
        if not _may_cost(config, trade, plan.zero) or _name(config, trade.unless):
            continue
        base = base or _memory(config, model, plan)
        lean = _memory(config, model, replace(plan, zero=_with(plan.zero, trade.key, trade.lean)))
        cost = base[trade.host] - lean[trade.host]
        if cost >= WORTH_BYTES:
            instead = json.dumps(trade.lean)
            yield _finding(config, name, cost, "host" if trade.host else "device", trade.buys, instead)


def _finding(config: Configuration, key: str, cost: int, where: str, buys: str, instead: str) -> Finding:
    message = f"{key} costs {format_bytes(cost)} of {where} memory on every rank, so that {buys}"
    return config.finding(TRADE, f"{ZERO}.{key}", message, f"{instead}, where memory is short", on_value=True)


def _name(config: Configuration, key: str) -> str:
    """The name under which the file gives ``key``; empty when it does not."""
    names = (key, key.removeprefix(_PREFIX))
    return next((name for name in names if name and config.has(f"{ZERO}.{name}")), "")


def _may_cost(config: Configuration, trade: _Trade, zero: ZeroConfig) -> bool:
    """Whether the option can be worth a word, before it is weighed."""
    value = _value(zero, trade.key)
    if trade.key in ("overlap_comm", "contiguous_gradients"):
        return bool(value) and zero.reduce_bucket_size * element_bytes(config) >= WORTH_BYTES
    return bool(value > trade.lean)


def _value(zero: ZeroConfig, key: str) -> Any:
    value: Any = zero
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _with(zero: ZeroConfig, key: str, value: Any) -> ZeroConfig:
    section, _, name = key.rpartition(".")
    changed: dict[str, Any] = {section: replace(_value(zero, section), **{name: value})} if section else {name: value}
    return replace(zero, **changed)


def _memory(config: Configuration, model: ModelShape, plan: Plan) -> tuple[int, int]:
    """Bytes that the worst rank needs at its peak: on the device, and on the host."""
    from dsplan.kernels import kernels_of
    from dsplan.walk import walk

    accelerator = None if config.run.cluster is None else config.run.cluster.accelerator
    result = walk(model, plan, ranks_of(config), kernels_of(accelerator))
    return max(step.peak_bytes for step in result.steps), result.host_bytes


CHECKS = (trades, secondary_partition)

"""Seconds that the host needs to ask: Python, hooks, launches. Measured on a model with nothing to compute.

A row of the profile is the time of a phase at one depth; two depths give the time of a block and of the rest.
Hooks differ by stage, operators by attention, activation and recomputation; what was not measured in combination
is the sum of the differences. Where several rows measure the same, their median counts: stages 0 to 2 leave the forward
pass and its recomputation to the model (deepspeed/runtime/engine.py, DeepSpeedEngine.forward), while stage 3 has hooks
around every module; and the step goes over parameters and gradients, whatever made them (``step`` of
runtime/zero/stage_1_and_2.py and stage3.py, runtime/fp16/fused_optimizer.py), so that attention, activation and
recomputation do not count there, and stages 1 and 2 are one.

The measured model is so small that stage 3 keeps for the backward pass what it has gathered. What releasing it and
gathering it again costs is the difference to rows of :data:`RELEASED`, times the share of the blocks that a plan
releases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.timing.profile import Profile
from dsplan.timing.released import released_share

Row = Mapping[str, Any]

#: The operators that every strategy was measured with.
_BASE = ("sdpa", "gelu")
#: Strategies whose forward pass is the model's alone.
_PLAIN = ("zero0", "zero1", "zero2", "zero2-offload")
#: Strategies whose step is one and the same (stage_1_and_2.py, ``step``), which knows of no stage.
_ONE_STEP = ("zero1", "zero2")
#: Stage 3 that keeps nothing between the passes: ``stage3_max_reuse_distance`` 0.
RELEASED = "zero3-released"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """Seconds of the host in each phase of one step of one micro batch."""

    forward: float
    backward: float
    step: float


def host_times(profile: Profile, model: ModelShape, plan: Plan, world_size: int) -> HostTimes:
    """What the host needs; see the module.

    Raises:
        InputError: the profile has no such strategy.
    """
    strategy = strategy_of(plan)
    recomputes = plan.workload.activation_checkpointing != "none"
    released = released_share(model, plan)
    key = ("host", strategy, recomputes, model.attention, model.activation, world_size > 1, model.num_layers, released)
    return profile.once(key, partial(_host_times, profile, model, strategy, recomputes, world_size, released))


def strategy_of(plan: Plan) -> str:
    """The strategy, as calibration names them, whose hooks the plan has; NVMe has those of the CPU."""
    zero = plan.zero
    if plan.ddp:
        return "zero0"
    name = f"zero{zero.stage}"
    if zero.offloads_optimizer:
        name = f"zero{max(zero.stage, 2)}-offload"
    return f"{name}-param" if zero.offloads_parameters else name


def _host_times(
    profile: Profile, model: ModelShape, strategy: str, recomputes: bool, world_size: int, released: float
) -> HostTimes:
    layers = model.num_layers
    attention = "sdpa" if model.attention != "eager" else "eager"
    activation = "gelu_new" if model.activation == "gelu_new" else "gelu"

    releases = any(row["strategy"] == RELEASED for row in profile.document["engine"])  # older profiles have no such row

    def at(strategy: str, recomputed: bool, operators: tuple[str, str], phase: str, ranks: int = 1) -> float:
        return _of(profile, strategy, recomputed, operators, phase, layers, ranks)

    def one(phase: str) -> float:
        found = at(strategy, False, _BASE, phase, world_size)
        for variant in ((attention, "gelu"), ("sdpa", activation)):
            if variant != _BASE and _has(profile, variant):
                # Recomputation asks for the forward pass's operators once more.
                phases = (phase, "forward_s") if recomputes and phase == "backward_s" else (phase,)
                found += sum(at("zero0", False, variant, each) - at("zero0", False, _BASE, each) for each in phases)
        if recomputes:
            resident = strategy.partition("-")[0]
            alike = [
                name
                for name in (_PLAIN[:3] if resident in _PLAIN else (resident,))
                if name == resident or _recomputed(profile, name)
            ]
            measured = [name for name in alike if _recomputed(profile, name)] or alike
            found += median(at(name, True, _BASE, phase) - at(name, False, _BASE, phase) for name in measured)
        if released and releases:
            again = at(RELEASED, False, _BASE, phase, world_size) - at("zero3", False, _BASE, phase, world_size)
            found += released * max(again, 0.0)
        return max(found, 0.0)

    step = _step(profile, strategy, layers, world_size)
    return HostTimes(forward=one("forward_s"), backward=one("backward_s"), step=step)


def _step(profile: Profile, strategy: str, layers: int, world_size: int) -> float:
    """Seconds of the step at a depth: of all rows of the strategy, whatever the model is made of."""
    alike = _ONE_STEP if strategy in _ONE_STEP else (strategy,)
    found = _line(profile, lambda row: row["strategy"] in alike, "step_s", layers, world_size)
    if found is None and "-" in strategy:
        return _step(profile, strategy.rpartition("-")[0], layers, world_size)
    return _required(found, profile, strategy)


def _has(profile: Profile, operators: tuple[str, str]) -> bool:
    """Whether other operators than the base's were measured; a nominal profile does not tell them apart."""
    return any((row["attention"], row["activation"]) == operators for row in profile.document["engine"])


def _recomputed(profile: Profile, strategy: str) -> bool:
    """Whether the strategy was measured with recomputation, at two depths."""
    rows = profile.document["engine"]
    found = [row for row in rows if row["strategy"] == strategy and row["checkpointing"] != "none"]
    return len(found) > 1


def _of(
    profile: Profile,
    strategy: str,
    recomputes: bool,
    operators: tuple[str, str],
    phase: str,
    layers: int,
    world_size: int,
) -> float:
    """Seconds at a depth, on the line through the two measured depths; of several ranks if that was measured."""
    alike = _PLAIN if phase == "forward_s" and strategy in _PLAIN else (strategy,)

    def chosen(row: Row) -> bool:
        made_of = (row["attention"], row["activation"])
        return row["strategy"] in alike and (row["checkpointing"] != "none") == recomputes and made_of == operators

    found = _line(profile, chosen, phase, layers, world_size)
    if found is None and "-" in strategy:  # too short a calibration: the hooks of the same stage without offload
        return _of(profile, strategy.rpartition("-")[0], recomputes, operators, phase, layers, world_size)
    return _required(found, profile, strategy)


def _required(found: float | None, profile: Profile, strategy: str) -> float:
    if found is None:
        raise InputError(f"profile {profile.name}: it lacks the engine's times for {strategy}; calibrate again")
    return found


def _line(profile: Profile, chosen: Callable[[Row], bool], phase: str, layers: int, world_size: int) -> float | None:
    """Seconds at a depth, on the line through the two measured depths; None where only one was measured."""
    rows = [row for row in profile.document["engine"] if chosen(row)]
    several = [row for row in rows if row["world_size"] > 1]
    if world_size > 1 and len({row["num_layers"] for row in several}) > 1:
        rows = several
    else:
        rows = [row for row in rows if row["world_size"] == 1]
    depths = sorted({row["num_layers"] for row in rows})
    if len(depths) < 2:
        return None
    shallow, deep = depths[0], depths[-1]
    first, last = (median(row[phase] for row in rows if row["num_layers"] == depth) for depth in (shallow, deep))
    slope = max(0.0, (last - first) / (deep - shallow))
    return float(max(first + slope * (layers - shallow), 0.0))

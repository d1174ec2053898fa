"""Seconds that the host needs to ask: Python, hooks, launches. Measured on a model with nothing to compute.

A row of the profile is the time of a phase at one depth; two depths give the time of a block and of the rest.
Hooks differ by stage, operators by attention, activation and recomputation; what was not measured in combination
is the sum of the differences. What else happens on a machine makes a measurement longer, never shorter: where several
rows measure the same, the shortest counts. Stages 0 to 2 leave the forward pass and its recomputation to the model
(deepspeed/runtime/engine.py, DeepSpeedEngine.forward); stage 3 has hooks around every module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.timing.profile import Profile

PHASES = ("forward_s", "backward_s", "step_s")
#: The operators that every strategy was measured with.
_BASE = ("sdpa", "gelu")
#: Strategies whose forward pass is the model's alone.
_PLAIN = ("zero0", "zero1", "zero2", "zero2-offload")


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
    key = ("host", strategy, recomputes, model.attention, model.activation, world_size > 1, model.num_layers)
    return profile.once(key, partial(_host_times, profile, model, strategy, recomputes, world_size))


def strategy_of(plan: Plan) -> str:
    """The strategy, as calibration names them, whose hooks the plan has; NVMe has those of the CPU."""
    zero = plan.zero
    if plan.ddp:
        return "zero0"
    name = f"zero{zero.stage}"
    if zero.offloads_optimizer:
        name = f"zero{max(zero.stage, 2)}-offload"
    return f"{name}-param" if zero.offloads_parameters else name


def _host_times(profile: Profile, model: ModelShape, strategy: str, recomputes: bool, world_size: int) -> HostTimes:
    def one(phase: str) -> float:
        layers = model.num_layers
        base = _of(profile, strategy, False, _BASE, phase, layers, world_size)
        attention = "sdpa" if model.attention != "eager" else "eager"
        activation = "gelu_new" if model.activation == "gelu_new" else "gelu"
        extra = 0.0
        for variant in ((attention, "gelu"), ("sdpa", activation)):
            if variant != _BASE and _has(profile, variant):
                # Recomputation asks for the forward pass's operators once more.
                phases = (phase, "forward_s") if recomputes and phase == "backward_s" else (phase,)
                for each in phases:
                    extra += _of(profile, "zero0", False, variant, each, layers, 1)
                    extra -= _of(profile, "zero0", False, _BASE, each, layers, 1)
        if recomputes:
            resident = strategy.partition("-")[0]
            alike = _PLAIN[:3] if resident in _PLAIN else (resident,)
            extra += min(
                _of(profile, one, True, _BASE, phase, layers, 1) - _of(profile, one, False, _BASE, phase, layers, 1)
                for one in alike
                if one == resident or _recomputed(profile, one)
            )
        return max(base + extra, 0.0)

    forward, backward, step = (one(phase) for phase in PHASES)
    return HostTimes(forward=forward, backward=backward, step=step)


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
    rows = [
        row
        for row in profile.document["engine"]
        if row["strategy"] in alike
        and (row["checkpointing"] != "none") == recomputes
        and (row["attention"], row["activation"]) == operators
    ]
    several = [row for row in rows if row["world_size"] > 1]
    chosen = several if world_size > 1 and len(several) > 1 else [row for row in rows if row["world_size"] == 1]
    if len(chosen) < 2:
        if "-" in strategy:  # too short a calibration: the hooks of the same stage without offload
            return _of(profile, strategy.rpartition("-")[0], recomputes, operators, phase, layers, world_size)
        raise InputError(f"profile {profile.name}: it lacks the engine's times for {strategy}; calibrate again")
    shallow, deep = min(row["num_layers"] for row in chosen), max(row["num_layers"] for row in chosen)
    first, last = (min(row[phase] for row in chosen if row["num_layers"] == depth) for depth in (shallow, deep))
    slope = max(0.0, (last - first) / (deep - shallow)) if deep > shallow else 0.0
    return float(max(first + slope * (layers - shallow), 0.0))

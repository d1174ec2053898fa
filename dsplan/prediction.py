"""Prediction: what one rank is expected to hold, as a measurement is compared with it.

The formulas predict, by a walk (:func:`predict`); or a dry run does, for a record of a real run
(:func:`prediction_from`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dsplan.errors import RunError
from dsplan.hardware import Accelerator
from dsplan.kernels import kernels_of
from dsplan.ledger import PhaseMemory, StepMemory
from dsplan.measurement import STEP_PHASES, Measurement, PhaseRecord, StepRecord
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.verdict.swap import pool_bytes
from dsplan.walk import FIRST_STEP, STEADY_STATE, capacity_of, walk

INIT = "init"
_SECOND_STEP = "step 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one rank, the worst unless another was asked for, is predicted to hold, in bytes.

    Attributes:
        init: building the model and ``deepspeed.initialize``.
        steps: the kinds of steps in order; the last is every further step.
        pinned_bytes: peak of what torch's pinned allocator holds, as a record has it; None: nothing is said of it.
        host_bytes: peak of what a rank adds to host memory, its process' own growth included; where device and host are
            one memory, of both together. None likewise.
        peak_reserved_bytes: what the caching allocator holds at most over the steps; None: the formulas do not say.
        peak_device_bytes: what the driver shows at most after a phase of a step; None likewise.
    """

    init: StepMemory
    steps: tuple[StepMemory, ...]
    pinned_bytes: int | None
    host_bytes: int | None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None


def predict(
    model: ModelShape,
    plan: Plan,
    accelerator: Accelerator | None,
    world_size: int,
    *,
    rank: int | None = None,
    replayed: bool = True,
) -> Prediction:
    """The formulas' prediction for a plan on ``world_size`` devices like ``accelerator``, as its allocator counts.

    Args:
        accelerator: None stands for a CUDA device of today.
        rank: whose memory is predicted; None: of each phase that of the worst.
        replayed: with the remainders that only a replay of the allocator knows, also of a large model.

    Raises:
        InputError: a combination that the formulas do not model.
    """
    from dsplan.verdict.counted import counted
    from dsplan.verdict.risen import risen_bytes

    kernels = kernels_of(accelerator)
    capacity = capacity_of(accelerator, world_size)
    walked = walk(model, plan, world_size, kernels, rank=rank, capacity_bytes=capacity)
    result = counted(
        model, plan, world_size, kernels, walked, rank=rank, capacity_bytes=capacity, however_large=replayed
    )
    if kernels.one_pool:
        host = max(step.peak_bytes for step in result.steps)
    else:
        host = risen_bytes(model, plan, world_size, kernels, rank=rank, capacity_bytes=capacity)
    pinned = pool_bytes(model, plan, world_size, result.pinned_bytes)
    return Prediction(
        init=result.steps[0],
        steps=result.steps[1:],
        pinned_bytes=pinned if kernels.pins_host_memory else 0,
        host_bytes=host,
    )


def prediction_from(measurement: Measurement) -> Prediction:
    """The worst rank of ``measurement``, in the part of the prediction: a dry run for a real one.

    The steps are those of the formulas: the first, at stage 3 the second, which prefetches by the trace of the
    first, and all later ones, of which each phase has the highest level and peak. Steps that were skipped are taken as
    :func:`dsplan.comparison.compare` takes a real run's: the first forward and backward are those of the first step,
    skipped or not, the first optimizer's step that of the first update.

    Raises:
        RunError: every step was skipped.
    """
    rank = measurement.worst_rank
    updates = [step for step in rank.steps if not step.skipped]
    if not updates:
        raise RunError("the dry run made no update: every step was skipped")
    first = replace(updates[0], phases={**rank.steps[0].phases, "step": updates[0].phases["step"]})
    updates = [first, *updates[1:]]
    has_second = measurement.configuration.prefetches and len(updates) > 2
    kinds = [(FIRST_STEP, updates[:1])]
    kinds += [(_SECOND_STEP, updates[1:2])] if has_second else []
    kinds += [(STEADY_STATE, updates[len(kinds) :])]
    return Prediction(
        init=StepMemory(name=INIT, phases={INIT: _highest([rank.init])}),
        steps=tuple(_step(name, steps) for name, steps in kinds if steps),
        pinned_bytes=rank.host.pinned_bytes,
        host_bytes=rank.host.risen_bytes,
        peak_reserved_bytes=measurement.peak_reserved_bytes,
        peak_device_bytes=measurement.peak_device_bytes,
    )


def _step(name: str, steps: list[StepRecord]) -> StepMemory:
    return StepMemory(
        name=name, phases={phase: _highest(step.phases[phase] for step in steps) for phase in STEP_PHASES}
    )


def _highest(phases: Iterable[PhaseRecord]) -> PhaseMemory:
    found = list(phases)
    return PhaseMemory(
        level_bytes=max(phase.level_bytes for phase in found), peak_bytes=max(phase.peak_bytes for phase in found)
    )

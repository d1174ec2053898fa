"""One configuration, by the formula and by the dry run: what differs, in bytes.

Two numbers of the dry run are held against: what its tensors take, every request rounded up to 512 bytes, which
tests what the formula knows of DeepSpeed and torch; and what torch's allocator counts as allocated, of which the
formula has a rule for large tensors (``Kernels.rounded``), and for small models a replay (``dsplan.verdict.counted``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Accelerator, Cluster
from dsplan.kernels import kernels_of
from dsplan.prediction import predict
from dsplan.walk import capacity_of, walk, worst_rank
from runner.spec import RunSpec
from tests.oracle.grid import Case

#: An H200 on which everything fits: a grid asks for what it asks.
TARGET = replace(accelerator("h200"), memory_bytes=2**50)
STEPS = 4
PHASES = ("forward", "backward", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDifference:
    """One phase: peak and level, by the formula and by the dry run, in bytes."""

    step: str
    phase: str
    predicted_peak: int
    found_peak: int
    predicted_level: int
    found_level: int

    @property
    def peak_error(self) -> int:
        return self.predicted_peak - self.found_peak

    @property
    def level_error(self) -> int:
        return self.predicted_level - self.found_level

    @property
    def error_percent(self) -> float:
        return 100 * self.peak_error / self.found_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A configuration: its phases, the peak over all steps, and host memory, in bytes.

    ``predicted_allocated`` and ``found_allocated`` are the peak as the allocator counts it; all other device figures
    are of tensors. Pinned is all that is page-locked: what torch's pinned allocator holds, and what NVMe offload locks.
    """

    case: Case
    rank: int
    phases: tuple[PhaseDifference, ...]
    predicted_allocated: int
    found_allocated: int
    predicted_pinned: int
    found_pinned: int
    predicted_pageable: int
    found_pageable: int
    seconds: float

    @property
    def predicted_peak(self) -> int:
        return max(phase.predicted_peak for phase in self.phases if phase.step != "init")

    @property
    def found_peak(self) -> int:
        return max(phase.found_peak for phase in self.phases if phase.step != "init")

    @property
    def error_percent(self) -> float:
        return 100 * (self.predicted_peak - self.found_peak) / self.found_peak

    @property
    def allocated_error_percent(self) -> float:
        return 100 * (self.predicted_allocated - self.found_allocated) / self.found_allocated

    @property
    def worst(self) -> PhaseDifference:
        return max(self.phases, key=lambda phase: abs(phase.error_percent))


def specification(case: Case, target: Accelerator = TARGET) -> RunSpec:
    """What the runner is told: the worst rank by the formula."""
    return RunSpec(
        model=case.model.to_config(),
        ds_config=emit(case.plan, case.model, Cluster(accelerator=target, gpus_per_node=case.world_size)),
        sequence_length=case.plan.workload.sequence_length,
        activation_checkpointing=case.plan.workload.activation_checkpointing,
        device="fake",
        gpus=case.world_size,
        rank=worst_rank(case.model, case.plan, case.world_size, kernels_of(target)),
        target=asdict(target),
        steps=STEPS,
    )


def difference(case: Case, record: Mapping[str, Any], target: Accelerator = TARGET) -> Difference:
    """The formula against the dry run's record of the same rank."""
    rank = record["rank"]
    counted = predict(case.model, case.plan, target, case.world_size, rank=rank)
    of_tensors = replace(kernels_of(target), whole_segments=False)
    capacity = capacity_of(target, case.world_size)
    walked = walk(case.model, case.plan, case.world_size, of_tensors, rank=rank, capacity_bytes=capacity)
    init, *steps = walked.steps
    dry = record["dry_run"]
    found = {(peak["step"], peak["phase"]): peak for peak in dry["peaks"]}
    phases = [_phase("init", "init", init.phases["init"], found["init", "init"])]
    for number in range(STEPS):
        step = steps[min(number, len(steps) - 1)]
        phases += [_phase(str(number), name, step.phases[name], found[str(number), name]) for name in PHASES]
    return Difference(
        case=case,
        rank=rank,
        phases=tuple(phases),
        predicted_allocated=max(step.peak_bytes for step in counted.steps),
        found_allocated=max(int(peak["bytes"]) for key, peak in found.items() if key[0] != "init"),
        predicted_pinned=walked.pinned_bytes,
        found_pinned=dry["host"]["pinned_bytes"] + dry["host"].get("locked_bytes", 0),
        predicted_pageable=walked.pageable_bytes,
        found_pageable=dry["host"]["pageable_bytes"],
        seconds=dry["seconds"],
    )


def _phase(step: str, name: str, predicted: Any, found: Mapping[str, Any]) -> PhaseDifference:
    return PhaseDifference(
        step=step,
        phase=name,
        predicted_peak=predicted.peak_bytes,
        found_peak=found["tensor_peak_bytes"],
        predicted_level=predicted.level_bytes,
        found_level=found["tensor_level_bytes"],
    )

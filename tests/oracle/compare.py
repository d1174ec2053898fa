"""One configuration, by the formula and by the dry run: what differs, in bytes.

The formula does not replay torch's allocator, so it is held against what the dry run's tensors take, every request
rounded up to 512 bytes; what the allocator cannot split off comes on top and is reported apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.prediction import Prediction, predict
from dsplan.walk import worst_rank
from runner.spec import RunSpec
from tests.oracle.grid import Case

TARGET = accelerator("h200")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A configuration: its phases, the peak over all steps, and pinned host memory, in bytes.

    ``unsplit_bytes`` is what the dry run's allocator counts above its tensors at the peak.
    """

    case: Case
    rank: int
    phases: tuple[PhaseDifference, ...]
    predicted_peak: int
    found_peak: int
    unsplit_bytes: int
    predicted_pinned: int
    found_pinned: int
    predicted_host: int
    found_host: int
    seconds: float

    @property
    def error_percent(self) -> float:
        return 100 * (self.predicted_peak - self.found_peak) / self.found_peak

    @property
    def worst(self) -> PhaseDifference:
        return max(self.phases, key=lambda phase: abs(phase.peak_error) / phase.found_peak)


def specification(case: Case) -> RunSpec:
    """What the runner is told: the worst rank by the formula."""
    return RunSpec(
        model=case.model.to_config(),
        ds_config=emit(case.plan, case.model, Cluster(accelerator=TARGET, gpus_per_node=case.world_size)),
        sequence_length=case.plan.workload.sequence_length,
        activation_checkpointing=case.plan.workload.activation_checkpointing,
        device="fake",
        gpus=case.world_size,
        rank=worst_rank(case.model, case.plan, case.world_size, kernels_of(TARGET)),
        target=asdict(TARGET),
        steps=STEPS,
    )


def difference(case: Case, record: Mapping[str, Any]) -> Difference:
    """The formula against the dry run's record of the same rank."""
    prediction = predict(case.model, case.plan, TARGET, case.world_size, rank=record["rank"])
    dry = record["dry_run"]
    found = {(peak["step"], peak["phase"]): peak for peak in dry["peaks"]}
    phases = [_phase("init", "init", prediction.init.phases["init"], found["init", "init"])]
    for number in range(STEPS):
        step = prediction.steps[min(number, len(prediction.steps) - 1)]
        phases += [_phase(str(number), name, step.phases[name], found[str(number), name]) for name in PHASES]
    of_steps = [phase for phase in phases if phase.step != "init"]
    highest = max((peak for key, peak in found.items() if key[0] != "init"), key=lambda peak: int(peak["bytes"]))
    return Difference(
        case=case,
        rank=record["rank"],
        phases=tuple(phases),
        predicted_peak=max(phase.predicted_peak for phase in of_steps),
        found_peak=max(phase.found_peak for phase in of_steps),
        unsplit_bytes=highest["bytes"] - highest["tensor_peak_bytes"],
        predicted_pinned=prediction.pinned_bytes,
        found_pinned=dry["host"]["pinned_bytes"],
        predicted_host=prediction.host_bytes,
        found_host=_host(prediction, dry),
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


def _host(prediction: Prediction, dry: Mapping[str, Any]) -> int:
    """Pageable and pinned; where their peaks do not meet, their sum is more than was there at any time."""
    return int(dry["host"]["pageable_bytes"] + prediction.pinned_bytes)

"""Comparison: a measurement against its prediction, phase by phase. Pure arithmetic.

What is predicted comes from the formulas, or from a dry run that is held against a record of a real one.

Of the measurement it takes the maximum over the ranks and over the steps of a kind, of the
prediction the walk of the worst rank. An error is predicted minus measured: positive means that
more was predicted than was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.errors import EXIT_RUN_FAILED, RunError
from dsplan.ledger import PhaseMemory
from dsplan.measurement import STEP_PHASES, Measurement, PhaseRecord
from dsplan.prediction import INIT, Prediction

SCHEMA = "comparison"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One number, predicted and measured, in bytes."""

    predicted_bytes: int
    measured_bytes: int

    @property
    def error_bytes(self) -> int:
        return self.predicted_bytes - self.measured_bytes

    @property
    def error_percent(self) -> float | None:
        """Of the measured number; None when nothing was measured where something was predicted."""
        if self.measured_bytes == 0:
            return 0.0 if self.predicted_bytes == 0 else None
        return 100 * self.error_bytes / self.measured_bytes

    def to_document(self) -> dict[str, Any]:
        return {
            "predicted_bytes": self.predicted_bytes,
            "measured_bytes": self.measured_bytes,
            "error_bytes": self.error_bytes,
            "error_percent": self.error_percent,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseComparison:
    """One phase of the initialisation or of one kind of step: the level at its end and the peak within."""

    step: str
    phase: str
    level: Difference
    peak: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every phase, and the verdict on the peak.

    Attributes:
        phases: in order of time.
        peak_allocated: the peak over the steps that were compared, initialisation apart: what is judged.
        init_peak: the peak of the initialisation.
        host_pinned: page-locked host memory; None where it could not be measured.
        host_total: host memory over what the process held before the model; None likewise.
        num_skipped_steps: steps without an update (fp16 overflow) on the first rank, which are left out.
        tolerance_percent: how far off the judged peak may be, either way.
        peak_reserved: what the caching allocator held at most over the steps; None where one side does not say.
        peak_device: what the driver showed at most after a phase of a step; None likewise.
        against: file of the record that was measured, where a dry run is what predicts; None: the formulas do.
    """

    phases: tuple[PhaseComparison, ...]
    peak_allocated: Difference
    init_peak: Difference
    host_pinned: Difference | None
    host_total: Difference | None
    num_skipped_steps: int
    tolerance_percent: float
    peak_reserved: Difference | None = None
    peak_device: Difference | None = None
    against: str | None = None

    @property
    def within_tolerance(self) -> bool:
        error = self.peak_allocated.error_percent
        return error is not None and abs(error) <= self.tolerance_percent

    def to_document(self) -> dict[str, Any]:
        """A document valid under ``schemas/comparison.schema.json``; what only a dry run predicts may be left out."""
        optional = {
            "peak_reserved": None if self.peak_reserved is None else self.peak_reserved.to_document(),
            "peak_device": None if self.peak_device is None else self.peak_device.to_document(),
            "against": self.against,
        }
        return {
            "phases": [
                {
                    "step": found.step,
                    "phase": found.phase,
                    "level": found.level.to_document(),
                    "peak": found.peak.to_document(),
                }
                for found in self.phases
            ],
            "peak_allocated": self.peak_allocated.to_document(),
            "init_peak": self.init_peak.to_document(),
            "host_pinned": None if self.host_pinned is None else self.host_pinned.to_document(),
            "host_total": None if self.host_total is None else self.host_total.to_document(),
            "num_skipped_steps": self.num_skipped_steps,
            "tolerance_percent": self.tolerance_percent,
            "within_tolerance": self.within_tolerance,
            **{key: value for key, value in optional.items() if value is not None},
        }


def compare(
    measurement: Measurement, prediction: Prediction, *, tolerance_percent: float, against: str | None = None
) -> Comparison:
    """Compare the two; ``against`` names the file of the measurement where a dry run predicts.

    The first step that was not skipped is held against the first kind of step of the prediction, the
    next against the second where there is one more, and all later ones against the last.

    Raises:
        RunError: every step was skipped, so that there is nothing to compare.
    """
    ranks = measurement.ranks
    measured_init = _Measured.of(rank.init for rank in ranks)
    phases = [_phase(INIT, INIT, prediction.init.phases[INIT], measured_init)]
    grouped = _by_kind(measurement, prediction)
    if not grouped:
        raise RunError(
            "every step was skipped, because the fp16 gradients overflowed: nothing to compare; "
            "use --precision bf16, or a smaller initial_scale_power in the DeepSpeed configuration",
            EXIT_RUN_FAILED,
        )
    predicted_peak = measured_peak = 0
    for step in prediction.steps:
        for phase in STEP_PHASES:
            if (step.name, phase) not in grouped:
                continue
            found = _phase(step.name, phase, step.phases[phase], _Measured.of(grouped[step.name, phase]))
            phases.append(found)
            predicted_peak = max(predicted_peak, found.peak.predicted_bytes)
            measured_peak = max(measured_peak, found.peak.measured_bytes)
    return Comparison(
        phases=tuple(phases),
        peak_allocated=Difference(predicted_bytes=predicted_peak, measured_bytes=measured_peak),
        init_peak=phases[0].peak,
        host_pinned=_difference(prediction.pinned_bytes, [rank.host.pinned_bytes for rank in ranks]),
        host_total=_difference(prediction.host_bytes, [rank.host.risen_bytes for rank in ranks]),
        num_skipped_steps=sum(step.skipped for step in ranks[0].steps),
        tolerance_percent=tolerance_percent,
        peak_reserved=_difference(prediction.peak_reserved_bytes, [measurement.peak_reserved_bytes]),
        peak_device=_difference(prediction.peak_device_bytes, [measurement.peak_device_bytes]),
        against=against,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """The highest level and peak of some phases."""

    level_bytes: int
    peak_bytes: int

    @classmethod
    def of(cls, phases: Iterable[PhaseRecord]) -> _Measured:
        found = list(phases)
        return cls(max(phase.level_bytes for phase in found), max(phase.peak_bytes for phase in found))


def _by_kind(measurement: Measurement, prediction: Prediction) -> Mapping[tuple[str, str], list[PhaseRecord]]:
    """The measured phases by the predicted step that they belong to, and by name.

    The first forward and backward are those of the first step, whether it was skipped or not: workspaces appear in
    them, and stage 3 prefetches from its second pass on. The first optimizer's step is the first that made an update.
    """
    kinds = [step.name for step in prediction.steps]
    grouped: dict[tuple[str, str], list[PhaseRecord]] = {}
    for rank in measurement.ranks:
        for position, step in enumerate(step for step in rank.steps if not step.skipped):
            kind = kinds[min(position, len(kinds) - 1)]
            for name, phase in step.phases.items():
                first_pass = position == 0 and name != "step"
                grouped.setdefault((kind, name), []).append(rank.steps[0].phases[name] if first_pass else phase)
    return grouped


def _phase(step: str, phase: str, predicted: PhaseMemory, measured: _Measured) -> PhaseComparison:
    return PhaseComparison(
        step=step,
        phase=phase,
        level=Difference(predicted_bytes=predicted.level_bytes, measured_bytes=measured.level_bytes),
        peak=Difference(predicted_bytes=predicted.peak_bytes, measured_bytes=measured.peak_bytes),
    )


def _difference(predicted_bytes: int | None, measured: list[int | None]) -> Difference | None:
    known = [size for size in measured if size is not None]
    if predicted_bytes is None or not known:
        return None
    return Difference(predicted_bytes=predicted_bytes, measured_bytes=max(known))

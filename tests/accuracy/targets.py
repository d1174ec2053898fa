"""What was asked of the formulas, and whether it is reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dsplan.units import MIB
from tests.accuracy.errors import Errors
from tests.accuracy.records import Compared, against_dry_runs, phase_name
from tests.accuracy.splits import halves
from tests.dry_comparison import Value
from tests.halves import SEEN, UNSEEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Limits in percent of the measured number; a value that is off by no more than the bytes is within too."""

    median_percent: float
    worst_percent: float
    under_percent: float
    worst_bytes: int = 0
    under_bytes: int = 0

    def is_beyond(self, value: Value) -> bool:
        """Whether one value breaks a limit, either way or downwards."""
        return self.is_too_far(value) or self.is_too_low(value)

    def is_too_far(self, value: Value) -> bool:
        return abs(value.percent) > self.worst_percent and abs(value.difference.error_bytes) > self.worst_bytes

    def is_too_low(self, value: Value) -> bool:
        return value.percent < -self.under_percent and value.difference.error_bytes < -self.under_bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``errors`` is None where there is no record yet."""

    title: str
    target: Target
    errors: Errors | None

    @property
    def beyond(self) -> list[Value]:
        """What breaks a limit, the furthest first."""
        found = [] if self.errors is None else [v for v in self.errors.values if self.target.is_beyond(v)]
        return sorted(found, key=lambda value: -abs(value.percent))

    @property
    def verdicts(self) -> tuple[bool, bool, bool] | None:
        """Whether median, worst and lowest are within; None without a record."""
        if self.errors is None:
            return None
        return (
            self.errors.median_absolute_percent <= self.target.median_percent,
            not any(map(self.target.is_too_far, self.errors.values)),
            not any(map(self.target.is_too_low, self.errors.values)),
        )


H200 = Target(median_percent=0.5, worst_percent=2, under_percent=1)
HOST = Target(median_percent=3, worst_percent=8, under_percent=3)
DRY_PEAK = Target(median_percent=0.2, worst_percent=1, under_percent=0.5)
DRY_PHASE = Target(median_percent=0.5, worst_percent=2, under_percent=1, worst_bytes=16 * MIB, under_bytes=8 * MIB)


def rows(records: Sequence[Compared]) -> list[Row]:
    """Every target, of the records and of their dry runs; the unseen half is what counts."""
    parts = halves(records)
    dry = against_dry_runs()
    names = {found.name for found in records}
    dry_peaks = [Value(name, "", found.peak_allocated) for name, found in dry.items() if name in names]
    dry_phases = [
        Value(name, phase_name(phase.step, phase.phase), phase.peak)
        for name, found in dry.items()
        if name in names
        for phase in found.phases
    ]
    return [
        Row("H200, peak allocated, unseen half", H200, Errors.of(found.peak for found in parts[UNSEEN])),
        Row("H200, peak allocated, seen half", H200, Errors.of(found.peak for found in parts[SEEN])),
        Row("H200, host memory with offload, unseen half", HOST, Errors.of(host_values(parts[UNSEEN]))),
        Row("H200, host memory with offload, seen half", HOST, Errors.of(host_values(parts[SEEN]))),
        Row("dry run of the same records, peak over the steps", DRY_PEAK, Errors.of(dry_peaks)),
        Row("dry run of the same records, each phase", DRY_PHASE, Errors.of(dry_phases)),
    ]


def host_values(records: Iterable[Compared]) -> list[Value]:
    """Host memory of the node, of the records that offload."""
    offloaded = (found for found in records if found.plan.zero.offloads)
    return [Value(found.name, "", found.host) for found in offloaded if found.host is not None]

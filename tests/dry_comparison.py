"""The dry runs of the H200 records against them: arithmetic on tests/data/dry_run.json and the records only.

Every comparison is :mod:`dsplan.comparison`'s, as ``dsplan verify --against`` makes it, of the rank that took most.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dsplan.comparison import Comparison, Difference, compare
from dsplan.measurement import Measurement, PhaseRecord
from dsplan.prediction import prediction_from
from tests.dry_records import Entry, as_measured
from tests.record_plans import host_is_open, plan_of

#: Below this an error is called none.
NOISE_PERCENT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What issue 3 asks for, in percent of the measured number."""

    median_percent: float
    worst_percent: float


@dataclass(frozen=True, slots=True)
class Value:
    """One number of one record: the dry run's against the measured one; ``what``: which, where there are several."""

    record: str
    what: str
    difference: Difference

    @property
    def percent(self) -> float:
        percent = self.difference.error_percent
        assert percent is not None
        return percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One record, and its dry run held against it.

    Attributes:
        allocated: of allocated memory, with the peaks of reserved and device memory.
        reserved: the same comparison of reserved memory, phase by phase.
        device: the same of what the driver showed at the end of each phase.
        host: peak of resident memory.
        host_risen: the same over what the process held before the model.
        host_is_open: it offloads, and resident memory has no one number (tests/accuracy/between.py).
    """

    name: str
    entry: Entry
    world_size: int
    offloads: bool
    allocated: Comparison
    reserved: Comparison
    device: Comparison
    host: Difference
    host_risen: Difference
    host_is_open: bool

    @property
    def phase_peaks(self) -> list[Value]:
        """Peak of allocated memory in every phase."""
        return phase_values(self.name, self.allocated)

    @property
    def worst_phase(self) -> Value:
        return max(self.phase_peaks, key=lambda value: abs(value.percent))

    def value(self, difference: Difference | None) -> Value:
        assert difference is not None
        return Value(self.name, "", difference)


def held(name: str, entry: Entry, record: Measurement) -> Held:
    """The dry run in ``entry`` against the rank of ``record`` that it is of."""
    measured = record.only_rank(entry["rank"])
    dry = as_measured(entry, measured)
    host, dry_host = measured.worst_rank.host, dry.worst_rank.host
    return Held(
        name=name,
        entry=entry,
        world_size=record.configuration.world_size,
        offloads=_offloads(record),
        allocated=_compare(dry, measured),
        reserved=_compare(*(_with(found, _reserved) for found in (dry, measured))),
        device=_compare(*(_with(found, _driver) for found in (dry, measured))),
        host=_difference(dry_host.peak_rss_bytes, host.peak_rss_bytes),
        host_risen=_difference(dry_host.risen_bytes, host.risen_bytes),
        host_is_open=_offloads(record) and host_is_open(measured, plan_of(record, name), name),
    )


def _compare(dry: Measurement, measured: Measurement) -> Comparison:
    return compare(measured, prediction_from(dry), tolerance_percent=5)


def _with(measurement: Measurement, sizes: Callable[[PhaseRecord], PhaseRecord]) -> Measurement:
    """``measurement`` with other sizes in the place of allocated memory, to be compared in the same way."""
    ranks = tuple(
        replace(
            rank,
            init=sizes(rank.init),
            steps=tuple(
                replace(step, phases={name: sizes(phase) for name, phase in step.phases.items()}) for step in rank.steps
            ),
        )
        for rank in measurement.ranks
    )
    return replace(measurement, ranks=ranks)


def _reserved(phase: PhaseRecord) -> PhaseRecord:
    assert phase.reserved_bytes is not None
    assert phase.peak_reserved_bytes is not None
    return replace(phase, level_bytes=phase.reserved_bytes, peak_bytes=phase.peak_reserved_bytes)


def _driver(phase: PhaseRecord) -> PhaseRecord:
    assert phase.device_bytes is not None
    return replace(phase, level_bytes=phase.device_bytes, peak_bytes=phase.device_bytes)


def _difference(dry: int | None, measured: int | None) -> Difference:
    assert dry is not None
    assert measured is not None
    return Difference(predicted_bytes=dry, measured_bytes=measured)


def _offloads(record: Measurement) -> bool:
    zero = record.configuration.ds_config.get("zero_optimization", {})
    sections = (zero.get("offload_optimizer") or {}, zero.get("offload_param") or {})
    return any(section.get("device", "none") != "none" for section in sections)


def phase_values(name: str, comparison: Comparison) -> list[Value]:
    return [Value(name, _phase_name(found.step, found.phase), found.peak) for found in comparison.phases]


def _phase_name(step: str, phase: str) -> str:
    return step if step == phase else f"{step}, {phase}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One row of the report; ``target`` is None where the issue sets none."""

    title: str
    values: Sequence[Value]
    target: Target | None = None

    @property
    def median_percent(self) -> float:
        """Of the absolute errors."""
        return statistics.median(abs(value.percent) for value in self.values)

    @property
    def share_under(self) -> float:
        """Share of the values that promise too little, by more than noise."""
        return sum(value.percent < -NOISE_PERCENT for value in self.values) / len(self.values)

    @property
    def worst(self) -> Value:
        return max(self.values, key=lambda value: abs(value.percent))

    @property
    def beyond(self) -> list[Value]:
        """The values that are further off than the worst may be, the furthest first."""
        if self.target is None:
            return []
        limit = self.target.worst_percent
        return sorted((v for v in self.values if abs(v.percent) > limit), key=lambda value: -abs(value.percent))


_ALLOCATED = Target(median_percent=0.05, worst_percent=0.3)
ALLOCATED_PHASES = "allocated, peak of each phase"
ALLOCATED_STEPS = "allocated, peak over the steps"


def quantities(records: Sequence[Held]) -> list[Quantity]:
    """The issue's rows, and below them what it sets no bound for."""
    offload = [found for found in records if found.offloads]
    told = [found for found in offload if not found.host_is_open]
    resident = [found for found in records if not found.offloads]
    rows = [
        Quantity(ALLOCATED_PHASES, [value for found in records for value in found.phase_peaks], _ALLOCATED),
        Quantity(ALLOCATED_STEPS, [f.value(f.allocated.peak_allocated) for f in records], _ALLOCATED),
        Quantity("reserved, no offload", _reserved_peaks(resident), Target(median_percent=0.2, worst_percent=5)),
        Quantity("reserved, offload", _reserved_peaks(offload), Target(median_percent=2, worst_percent=8)),
        Quantity(
            "device (`nvidia-smi`)",
            [found.value(found.allocated.peak_device) for found in records],
            Target(median_percent=0.5, worst_percent=5),
        ),
        Quantity("host RSS, offload", [f.value(f.host) for f in told], Target(median_percent=1, worst_percent=4)),
        Quantity("reserved in each phase, no offload", [v for f in resident for v in phase_values(f.name, f.reserved)]),
        Quantity("reserved in each phase, offload", [v for f in offload for v in phase_values(f.name, f.reserved)]),
        Quantity("device after each phase", [v for f in records for v in phase_values(f.name, f.device)]),
        Quantity("host RSS, no offload", [found.value(found.host) for found in resident]),
        Quantity("host RSS over the start, offload", [found.value(found.host_risen) for found in told]),
        Quantity("pinned host memory, offload", [found.value(found.allocated.host_pinned) for found in offload]),
    ]
    return [row for row in rows if row.values]


def _reserved_peaks(records: Iterable[Held]) -> list[Value]:
    return [found.value(found.allocated.peak_reserved) for found in records]


def all_held(entries: Mapping[str, Entry], records: Mapping[str, Measurement]) -> list[Held]:
    """Every dry run that did not fail, by name."""
    return [held(name, entry, records[name]) for name, entry in sorted(entries.items()) if "error" not in entry]

"""The committed records of real runs, each with what the formulas say of it, and the half that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dsplan.comparison import Comparison, Difference, compare
from dsplan.errors import InputError, RunError
from dsplan.estimate import estimate
from dsplan.hardware import Accelerator, Cluster
from dsplan.measurement import Measurement, measurement_from_document
from dsplan.model import ModelShape
from dsplan.modelfile import shape_from_config
from dsplan.plan import Plan
from dsplan.prediction import predict
from dsplan.verdict.rows import HostEstimate
from dsplan.verify_device import measured_accelerator
from dsplan.walk import STEADY_STATE
from tests.dry_comparison import Value
from tests.dry_records import as_measured, read_entries
from tests.halves import half_of
from tests.record_plans import host_is_open, plan_of

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests" / "data" / "measured"
TOLERANCE_PERCENT = 5


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One record, and what the formulas say of it.

    Attributes:
        peak_of_tensors: the peak, predicted without the replay that says which block a tensor gets.
        host: memory of the node, all ranks together; None where it offloads and has no one number
            (:mod:`tests.accuracy.between`).
    """

    name: str
    measurement: Measurement
    model: ModelShape
    accelerator: Accelerator
    plan: Plan
    comparison: Comparison
    peak_of_tensors: Difference
    host: Difference | None

    @property
    def world_size(self) -> int:
        return self.measurement.configuration.world_size

    @property
    def half(self) -> str:
        return half_of(self.name)

    @property
    def peak(self) -> Value:
        """Peak of allocated memory over the steps."""
        return Value(self.name, "", self.comparison.peak_allocated)

    @property
    def states(self) -> Difference | None:
        """Allocated at the end of a steady backward pass: parameters, gradients, optimizer states, no activations."""
        ends = {(found.step, found.phase): found.level for found in self.comparison.phases}
        return ends.get((STEADY_STATE, "backward"))

    @property
    def phase_peaks(self) -> list[tuple[str, str, Value]]:
        """(step, phase, peak) of every phase, in order of time."""
        return [
            (found.step, found.phase, Value(self.name, phase_name(found.step, found.phase), found.peak))
            for found in self.comparison.phases
        ]

    @property
    def fragmentation(self) -> float:
        """Reserved over allocated memory, at their peaks."""
        measured = self.measurement
        assert measured.peak_reserved_bytes is not None
        return measured.peak_reserved_bytes / measured.peak_allocated_bytes

    @property
    def overhead_bytes(self) -> int:
        """What the driver showed above reserved memory."""
        measured = self.measurement
        assert measured.peak_device_bytes is not None
        assert measured.peak_reserved_bytes is not None
        return measured.peak_device_bytes - measured.peak_reserved_bytes


@dataclass(frozen=True)
class Refused:
    """A record that the formulas say nothing of, and why."""

    name: str
    reason: str


def phase_name(step: str, phase: str) -> str:
    return step if step == phase else f"{step}, {phase}"


@cache
def measurements() -> Mapping[str, Measurement]:
    """Every record, by name."""
    return {
        path.stem: measurement_from_document(json.loads(path.read_text(encoding="utf-8")), path.name)
        for path in sorted(RECORDS.glob("*.json"))
    }


def compared() -> tuple[Compared, ...]:
    """Every record that the formulas cover, by name."""
    return tuple(found for found in _everything() if isinstance(found, Compared))


def refused() -> tuple[Refused, ...]:
    """The others."""
    return tuple(found for found in _everything() if isinstance(found, Refused))


@cache
def _everything() -> tuple[Compared | Refused, ...]:
    return tuple(compare_record(name, measurement) for name, measurement in measurements().items())


def compare_record(name: str, measurement: Measurement) -> Compared | Refused:
    """One record, and what the formulas say of it."""
    configuration = measurement.configuration
    card = measured_accelerator(measurement.device)
    try:
        model = shape_from_config(dict(configuration.model), where=name)
        plan = plan_of(measurement, name)
        prediction = predict(model, plan, card, configuration.world_size)
        resident = resident_bytes(measurement)
        plain = predict(model, plan, card, configuration.world_size, replayed=False)
        return Compared(
            name=name,
            measurement=measurement,
            model=model,
            accelerator=card,
            plan=plan,
            comparison=compare(measurement, prediction, tolerance_percent=TOLERANCE_PERCENT),
            peak_of_tensors=compare(measurement, plain, tolerance_percent=TOLERANCE_PERCENT).peak_allocated,
            host=None
            if resident is None or (plan.zero.offloads and host_is_open(measurement, plan, name))
            else Difference(
                predicted_bytes=host_of_node(measurement, model, plan, card).bytes_per_node, measured_bytes=resident
            ),
        )
    except (InputError, RunError) as error:
        return Refused(name, str(error))


def resident_bytes(measurement: Measurement) -> int | None:
    """What the processes of the ranks had resident at most, added up; None where one does not say."""
    resident = [rank.host.peak_rss_bytes for rank in measurement.ranks]
    known = [size for size in resident if size is not None]
    return sum(known) if len(known) == len(resident) else None


def host_of_node(measurement: Measurement, model: ModelShape, plan: Plan, card: Accelerator) -> HostEstimate:
    """What ``estimate`` says of the node."""
    cluster = Cluster(accelerator=card, gpus_per_node=measurement.configuration.world_size)
    (row,) = estimate(model, [plan], cluster, ladder=False).plans
    return row.host


@cache
def against_dry_runs() -> Mapping[str, Comparison]:
    """The formulas against the committed dry runs of the same records, of the rank that each is of."""
    entries = read_entries()
    return {
        found.name: _against(found, entries[found.name])
        for found in compared()
        if "error" not in entries.get(found.name, {"error": "not dry-run"})
    }


def _against(found: Compared, entry: Mapping[str, object]) -> Comparison:
    rank = entry["rank"]
    assert isinstance(rank, int)
    prediction = predict(found.model, found.plan, found.accelerator, found.world_size, rank=rank)
    dry = as_measured(entry, found.measurement.only_rank(rank))
    return compare(dry, prediction, tolerance_percent=TOLERANCE_PERCENT)

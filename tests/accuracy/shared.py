"""Records of more ranks than cards: four and eight on two, and eight on four (``verify --share-devices``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from dsplan.comparison import Comparison, compare
from dsplan.measurement import measurement_from_document
from dsplan.prediction import prediction_from
from dsplan.units import MIB
from tests.accuracy.records import TOLERANCE_PERCENT, Compared, Refused, compare_record
from tests.accuracy.tables import percent
from tests.dry_accuracy import SHARED_RECORDS, record_of
from tests.dry_records import SHARED_DRY_RUNS, as_measured, read_entries
from tests.verdict.reserved import SHARED, held, recorded


def shared() -> Iterator[Compared]:
    """Each with what the formulas say of it, by name.

    Raises:
        ValueError: the formulas do not cover one.
    """
    documents = json.loads(SHARED_RECORDS.read_text(encoding="utf-8"))
    for name, document in sorted(documents.items()):
        found = compare_record(name, measurement_from_document(document, name))
        if isinstance(found, Refused):
            raise ValueError(f"{name}: {found.reason}")
        yield found


def dry_runs() -> Mapping[str, Comparison]:
    """The record's worst rank against its dry run, by name."""
    found = {}
    for name, entry in read_entries(SHARED_DRY_RUNS).items():
        record = record_of(name).only_rank(entry["rank"])
        dry = prediction_from(as_measured(entry, record))
        found[name] = compare(record, dry, tolerance_percent=TOLERANCE_PERCENT)
    return found


def table() -> list[str]:
    """Allocated and reserved memory of the rank that has most, and with offload the host's of all ranks."""
    lines = [
        "| record | ranks | allocated | formulas | worst phase | dry run | worst phase | reserved | expected, at most "
        "| host memory of the node, with offload |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    dry, reserving = dry_runs(), {run.name: run for run in recorded((SHARED,))}
    for found in shared():
        name, host, reserved = found.name, found.host, held(reserving[found.name])
        lines.append(
            f"| {name} | {found.world_size} | {found.comparison.peak_allocated.measured_bytes / MIB:,.1f} "
            f"| {percent(found.peak.percent)} | {_worst_phase(found.comparison)} "
            f"| {percent(dry[name].peak_allocated.error_percent)} | {_worst_phase(dry[name])} "
            f"| {reserved.recorded.reserved_bytes / MIB:,.0f} "
            f"| {percent(100 * reserved.expected)}, {percent(100 * reserved.bound)} "
            f"| {percent(host.error_percent or 0) if found.plan.zero.offloads and host is not None else ''} |"
        )
    return lines


def _worst_phase(comparison: Comparison) -> str:
    errors = [found.peak.error_percent or 0 for found in comparison.phases]
    return percent(max(errors, key=abs))

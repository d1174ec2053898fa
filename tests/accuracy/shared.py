"""Records of more ranks than cards: four and eight on two, and eight on four (``verify --share-devices``)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from dsplan.measurement import measurement_from_document
from dsplan.units import MIB
from tests.accuracy.records import ROOT, Compared, Refused, compare_record
from tests.accuracy.tables import percent

SHARED_RECORDS = ROOT / "tests" / "data" / "shared_records.json"


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


def table() -> list[str]:
    """Peak of allocated memory of the rank that has most, and with offload the host's of all ranks."""
    lines = [
        "| record | ranks | measured | predicted | error | host memory of the node, with offload |",
        "|---|---|---|---|---|---|",
    ]
    for found in shared():
        peak = found.comparison.peak_allocated
        host = percent(found.host.error_percent or 0) if found.plan.zero.offloads and found.host is not None else ""
        lines.append(
            f"| {found.name} | {found.world_size} | {peak.measured_bytes / MIB:,.1f} "
            f"| {peak.predicted_bytes / MIB:,.1f} | {percent(found.peak.percent)} | {host} |"
        )
    return lines

"""The numbers of docs/accuracy.md as one document, for ``python -m tests.accuracy --json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.accuracy.errors import Errors
from tests.accuracy.estimators import ESTIMATORS, Estimator
from tests.accuracy.records import Compared, compared, refused
from tests.accuracy.splits import groups, halves
from tests.accuracy.tables import phases
from tests.accuracy.targets import Row, rows
from tests.dry_comparison import Value


def document() -> dict[str, Any]:
    """Targets, splits by estimator, phases by half, records; errors in percent, sizes in bytes."""
    found = compared()
    return {
        "targets": [_target(row) for row in rows(found)],
        "estimators": {_key(each): _splits(each, found) for each in ESTIMATORS},
        "phases": {half: _errors(phases(records)) for half, records in halves(found).items() if records},
        "records": {each.name: _record(each) for each in found},
        "refused": {each.name: each.reason for each in refused()},
    }


def _key(estimator: Estimator) -> str:
    return estimator.title.replace("`", "")


def _target(row: Row) -> dict[str, Any]:
    met = None if row.verdicts is None else dict(zip(("median", "worst", "under"), row.verdicts, strict=True))
    return {"on": row.title, "met": met, "errors": None if row.errors is None else row.errors.to_document()}


def _splits(estimator: Estimator, records: Sequence[Compared]) -> dict[str, Any]:
    return _errors({group.name: [estimator.peak(each) for each in group.records] for group in groups(records)})


def _errors(values: Mapping[str, Sequence[Value]]) -> dict[str, Any]:
    found = {name: Errors.of(each) for name, each in values.items()}
    return {name: errors.to_document() for name, errors in found.items() if errors is not None}


def _record(found: Compared) -> dict[str, Any]:
    return {
        "half": found.half,
        "measured_bytes": found.comparison.peak_allocated.measured_bytes,
        "predicted_bytes": {_key(each): each.peak(found).difference.predicted_bytes for each in ESTIMATORS},
    }

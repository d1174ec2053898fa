"""Records of torch's DDP on H200 against the formulas: ``python -m tests.ddp_records [--dry] [RECORDS]``.

The records are what ``python -m tests.gpu.sweep ddp tests/data/ddp_records.json --gpus 4`` leaves. ``--dry`` also makes
the dry run of each, which takes a minute or two for all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dsplan.catalogue import accelerator
from dsplan.comparison import Comparison, compare
from dsplan.dsconfig.ddp import ddp_plan
from dsplan.measurement import Measurement, measurement_from_document, measurement_from_ranks
from dsplan.modelfile import shape_from_config
from dsplan.prediction import predict, prediction_from
from dsplan.units import MIB
from runner.spec import RunSpec
from tests.accuracy.tables import percent
from tests.dry_runs import dry_runs

RECORDS = Path(__file__).parent / "data" / "ddp_records.json"
TARGET = "h200"
TOLERANCE_PERCENT = 5.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """A record held against the formulas; ``dry``: and against its dry run, or what that ended with."""

    name: str
    measurement: Measurement
    comparison: Comparison
    dry: Comparison | str | None = None


def read(path: Path = RECORDS) -> dict[str, Measurement]:
    """The measurements in what a sweep left, by name; cases that failed are left out."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        each["name"]: measurement_from_document(each["record"], each["name"]) for each in entries if "record" in each
    }


def held(name: str, measurement: Measurement) -> Held:
    """The formulas' prediction against the record: of all ranks the worst, for all are alike."""
    configuration = measurement.configuration
    model = shape_from_config(dict(configuration.model), where=name, name=configuration.model_name)
    plan = ddp_plan(configuration.ds_config, configuration.workload, name)
    prediction = predict(model, plan, accelerator(TARGET), configuration.world_size)
    return Held(
        name=name,
        measurement=measurement,
        comparison=compare(measurement, prediction, tolerance_percent=TOLERANCE_PERCENT),
    )


def with_dry_runs(rows: list[Held]) -> Iterator[Held]:
    """Each with its dry run, of the rank that took most."""
    by_name = {row.name: row for row in rows}
    for name, record in dry_runs({row.name: specification(row.measurement) for row in rows}, jobs=1):
        row = by_name[name]
        if isinstance(record, str):
            yield replace(row, dry=record)
            continue
        found = row.measurement.configuration
        dry = measurement_from_ranks(
            [record],
            strategy=found.strategy,
            model_name=found.model_name,
            model=found.model,
            ds_config=found.ds_config,
            workload=found.workload,
            data=found.data,
        )
        one = row.measurement.only_rank(record["rank"])
        yield replace(row, dry=compare(one, prediction_from(dry), tolerance_percent=TOLERANCE_PERCENT))


def specification(measurement: Measurement) -> RunSpec:
    """The dry run of what a record says was run, with the steps that it skipped first."""
    found, worst = measurement.configuration, measurement.worst_rank
    return RunSpec(
        model=dict(found.model),
        ds_config=dict(found.ds_config),
        sequence_length=found.workload.sequence_length,
        activation_checkpointing=found.workload.activation_checkpointing,
        device="fake",
        gpus=found.world_size,
        rank=worst.rank,
        target=asdict(accelerator(TARGET)),
        steps=len(worst.steps),
        data=found.data,
        skipped_steps=next((number for number, step in enumerate(worst.steps) if not step.skipped), 0),
    )


def table(rows: list[Held]) -> list[str]:
    """A Markdown table: the peak of each record, and by how much the formulas are off, and dry runs where they are."""
    dry = any(row.dry is not None for row in rows)
    columns = [
        "record",
        "ranks",
        "allocated",
        "formulas",
        "worst phase",
        *(["dry run", "worst phase"] * dry),
        "reserved",
    ]
    lines = [_line(columns), "|---" * len(columns) + "|"]
    for row in rows:
        errors = _errors(row.dry) if isinstance(row.dry, Comparison) else (row.dry or "", "")
        measured, peak = row.measurement, row.comparison.peak_allocated
        lines.append(
            _line(
                [
                    row.name,
                    str(measured.configuration.world_size),
                    f"{peak.measured_bytes / MIB:,.1f}",
                    *_errors(row.comparison),
                    *(errors if dry else ()),
                    f"{(measured.peak_reserved_bytes or 0) / MIB:,.0f}",
                ]
            )
        )
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _errors(comparison: Comparison) -> tuple[str, str]:
    worst = max(comparison.phases, key=lambda phase: abs(phase.peak.error_percent or 0))
    where = f"{percent(worst.peak.error_percent or 0)} ({worst.step}, {worst.phase})"
    return percent(comparison.peak_allocated.error_percent or 0), where


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", nargs="?", type=Path, default=RECORDS)
    parser.add_argument("--dry", action="store_true", help="their dry runs too")
    options = parser.parse_args()
    try:
        measurements = read(options.records)
    except OSError as error:
        parser.error(f"{options.records}: {error.strerror}")
    rows = [held(name, measurement) for name, measurement in measurements.items()]
    if options.dry:
        rows = list(with_dry_runs(rows))
    sys.stdout.write("\n".join(table(rows)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

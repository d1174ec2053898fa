"""Records of transformers' decoders on H200 GPUs (tests/data/hf_records.json), beside formulas and dry runs.

``python -m tests.gpu.sweep HF`` makes the records; ``python -m tests.families.record_runs`` dry-runs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dsplan.comparison import Comparison, compare
from dsplan.dsconfig.read import read_document
from dsplan.measurement import Measurement, measurement_from_document
from dsplan.modelfile import shape_from_config
from dsplan.prediction import predict, prediction_from
from dsplan.verify_device import measured_accelerator
from tests.dry_accuracy import worst_rank_of
from tests.dry_records import Entry, as_measured, read_entries

DATA = Path(__file__).parents[1] / "data"
RECORDS, DRY_RUNS = DATA / "hf_records.json", DATA / "hf_dry_runs.json"
_TOLERANCE_PERCENT = 5


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A record with what the formulas and a dry run said of its worst rank."""

    name: str
    record: Measurement
    formulas: Comparison
    dry_run: Comparison


@cache
def records() -> Mapping[str, Measurement]:
    """The worst rank of each record, by its case's name."""
    documents = json.loads(RECORDS.read_text(encoding="utf-8"))
    found = {}
    for document in documents:
        record = measurement_from_document(document["record"], document["case"])
        configuration = replace(record.configuration, model_name=document["case"])
        found[document["case"]] = worst_rank_of(replace(record, configuration=configuration))
    return found


def by_formulas(record: Measurement) -> Comparison:
    """The formulas against ``record``, its rank."""
    configuration = record.configuration
    model = shape_from_config(dict(configuration.model), where=configuration.model_name)
    read = read_document(
        configuration.ds_config,
        path=Path(f"{configuration.model_name}.json"),
        world_size=configuration.world_size,
        sequence_length=configuration.workload.sequence_length,
        activation_checkpointing=configuration.workload.activation_checkpointing,
    )
    found = predict(
        model,
        read.plan,
        measured_accelerator(record.device),
        configuration.world_size,
        rank=record.worst_rank.rank,
    )
    return compare(record, found, tolerance_percent=_TOLERANCE_PERCENT)


def by_dry_run(entry: Entry, record: Measurement) -> Comparison:
    """The dry run that is kept against ``record``."""
    return compare(record, prediction_from(as_measured(entry, record)), tolerance_percent=_TOLERANCE_PERCENT)


@cache
def judged() -> tuple[Judged, ...]:
    """All records, in the order of their file."""
    dry = read_entries(DRY_RUNS)
    return tuple(
        Judged(name=name, record=record, formulas=by_formulas(record), dry_run=by_dry_run(dry[name], record))
        for name, record in records().items()
    )

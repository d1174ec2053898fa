"""The dry runs of the committed records, as ``tests/data/dry_run.json`` keeps them: numbers only, no engine.

``python -m tests.dry_accuracy`` makes the file; ``tests.dry_report`` holds it against the records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

from dsplan.measurement import STEP_PHASES, HostRecord, Measurement, PhaseRecord, RankRecord, StepRecord

DRY_RUNS = Path(__file__).parent / "data" / "dry_run.json"
SHARED_DRY_RUNS = Path(__file__).parent / "data" / "shared_dry_run.json"  # of more ranks than cards
_ABOUT = (
    "Dry runs of records, one rank of each. Written by python -m tests.dry_accuracy; then run python -m tests.accuracy."
)
_COLUMNS = tuple(field.name for field in fields(PhaseRecord))
_INIT = "init"

#: The dry run of one record: the numbers of one rank, or ``error``.
Entry = Mapping[str, Any]


def entry_of(dry: Measurement, *, seconds: float, cpu_seconds: float, process_bytes: int) -> dict[str, Any]:
    """What is kept of a dry run.

    Args:
        seconds: from the command to the result.
        cpu_seconds: of all processes of the run: what it would take on an idle machine, nearly.
        process_bytes: the most that a process of the run had resident.
    """
    rank, found = dry.worst_rank, dry.dry_run
    if found is None:
        raise ValueError("not the record of a dry run")
    named = [(_INIT, _INIT, rank.init)]
    named += [(str(step.index), name, step.phases[name]) for step in rank.steps for name in STEP_PHASES]
    return {
        "created": dry.created,
        "versions": dict(dry.versions),
        "target": found.target,
        "rank": rank.rank,
        "optimizer": dry.optimizer,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "process_bytes": process_bytes,
        "num_events": found.num_events,
        "num_answers": found.num_answers,
        "host": asdict(rank.host),
        "phases": [[step, phase, *astuple(sizes)] for step, phase, sizes in named],
    }


def failed_entry(created: str, error: str) -> dict[str, Any]:
    """What is kept of a dry run that failed."""
    return {"created": created, "error": error}


def as_measured(entry: Entry, record: Measurement) -> Measurement:
    """``record`` with the dry run's numbers in place of its own: what is compared with it.

    The dry run skipped the steps that the record had skipped before its first update.
    """
    skipped = next((number for number, step in enumerate(record.worst_rank.steps) if not step.skipped), 0)
    phases: dict[str, dict[str, PhaseRecord]] = {}
    for step, phase, *sizes in entry["phases"]:
        phases.setdefault(step, {})[phase] = PhaseRecord(**dict(zip(_COLUMNS, sizes, strict=True)))
    init = phases.pop(_INIT)[_INIT]
    steps = tuple(
        StepRecord(index=int(index), phases=found, loss=None, skipped=int(index) < skipped, seconds=0)
        for index, found in phases.items()
    )
    host = HostRecord(**entry["host"])
    rank = RankRecord(rank=entry["rank"], init=init, init_seconds=0, steps=steps, host=host)
    return replace(record, ranks=(rank,))


def read_entries(path: Path = DRY_RUNS) -> dict[str, Entry]:
    """Name of a record -> its dry run; empty where nothing was written yet."""
    if not path.exists():
        return {}
    entries: dict[str, Entry] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return entries


def merged(entries: Mapping[str, Entry], added: Mapping[str, Entry], known: Iterable[str]) -> dict[str, Entry]:
    """The dry runs of the records that are ``known``, by name; what was added replaces what was there."""
    both = {**entries, **added}
    return {name: both[name] for name in sorted(set(known)) if name in both}


def write_entries(entries: Mapping[str, Entry], path: Path = DRY_RUNS) -> None:
    """Write the file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(_text(entries), encoding="utf-8")
    temporary.replace(path)


def _text(entries: Mapping[str, Entry]) -> str:
    """JSON with a line for each phase, which a difference of two versions shows."""
    columns = ["step", "phase", *_COLUMNS]
    records = ",\n".join(f"  {json.dumps(name)}: {_entry_text(entry)}" for name, entry in entries.items())
    return (
        f'{{\n "about": {json.dumps(_ABOUT)},\n "columns": {json.dumps(columns)},\n "records": {{\n{records}\n }}\n}}\n'
    )


def _entry_text(entry: Entry) -> str:
    head = {key: value for key, value in entry.items() if key != "phases"}
    lines = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    if "phases" in entry:
        rows = ",\n".join(f"    {json.dumps(row)}" for row in entry["phases"])
        lines.append(f'   "phases": [\n{rows}\n   ]')
    return "{\n" + ",\n".join(lines) + "\n  }"

"""``python -m tests.families.record_runs [CASE...]``: dry runs of the records of transformers' decoders.

Of each record the rank that took most, three steps, for the device of the record; what comes out is kept in
tests/data/hf_dry_runs.json after each of them. All take a few minutes of a core. ``--older`` runs those that were made
by other code or versions than are here, ``--count`` none: it says how many they are. ``python -m tests.families.report
--table`` then writes the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsplan.measurement import Measurement
from dsplan.verification import verify
from tests.dry_accuracy import STEPS, job_of
from tests.dry_records import entry_of, merged, read_entries, write_entries
from tests.families.made_by import is_older, made_by
from tests.families.records import DRY_RUNS, records

TIMEOUT_S = 600.0


def told(record: Measurement) -> dict[str, Any]:
    """What the dry run of a record is told."""
    configuration = asdict(record.configuration)
    del configuration["model_name"]
    skipped = [step.skipped for step in record.worst_rank.steps]
    return {
        "configuration": configuration,
        "device": asdict(record.device),
        "rank": record.worst_rank.rank,
        "skipped": skipped,
        "steps": STEPS,
    }


def older() -> list[str]:
    """The records whose dry runs are missing, or were made by other code or versions than are here."""
    kept = read_entries(DRY_RUNS)
    return [name for name, record in records().items() if is_older(kept.get(name, {}).get("made_by"), told(record))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Dry-run the records of the cases that ``arguments`` name, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("cases", nargs="*", metavar="CASE", help="of which records (default: all)")
    parser.add_argument("--older", action="store_true", help="only those that were made by other code or versions")
    parser.add_argument("--count", action="store_true", help="no dry runs: how many are older")
    options = parser.parse_args(arguments)
    known = records()
    unknown = [name for name in options.cases if name not in known]
    if unknown:
        parser.error(f"no such record: {', '.join(unknown)}")
    names = options.cases or list(known)
    if options.older:
        names = [name for name in older() if name in names]
    for name in [] if options.count else names:
        _run(name, known)
    sys.stderr.write(f"{len(older())} of {len(known)} dry runs are of other code or versions than are here\n")
    return 0


def _run(name: str, known: Mapping[str, Measurement]) -> None:
    """Dry-run one record, and keep what came out."""
    begun = time.perf_counter()
    maker = made_by(told(known[name]))
    with tempfile.TemporaryDirectory(prefix="dsplan-dry-") as folder:
        dry, _ = verify(
            job_of(known[name], name),
            Path(folder),
            timeout_s=TIMEOUT_S,
            tolerance_percent=5,
            on_progress=lambda _: None,
        )
    entry = entry_of(dry, seconds=time.perf_counter() - begun, cpu_seconds=0, process_bytes=0)
    write_entries(merged(read_entries(DRY_RUNS), {name: entry | {"made_by": maker}}, known), DRY_RUNS)
    sys.stderr.write(f"{name}: {time.perf_counter() - begun:.0f} s\n")


if __name__ == "__main__":
    sys.exit(main())

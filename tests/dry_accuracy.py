"""The slow lane: ``python -m tests.dry_accuracy [RECORD...] [--shared]`` dry-runs the committed H200 records.

Of each record the rank that took most, three steps, for the device of the record. What comes out is kept in
tests/data/dry_run.json: all of it after each record, so that nothing is lost when it is broken off. With names of
records (or their files) only those are run, and the others stay as they are. ``--shared`` does the same with the
records of more ranks than cards, in tests/data/shared_dry_run.json; ``--jobs 2`` makes two at a time. ``python -m
tests.accuracy`` then writes the report. All 53 take about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from dsplan.comparison import compare
from dsplan.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED
from dsplan.measurement import Measurement, measurement_from_document, read_measurement
from dsplan.modelfile import shape_from_config
from dsplan.prediction import prediction_from
from dsplan.verification import Job, Reference, verify
from dsplan.verify_device import dry_run_device, measured_accelerator
from tests.dry_records import (
    DRY_RUNS,
    SHARED_DRY_RUNS,
    Entry,
    as_measured,
    entry_of,
    failed_entry,
    merged,
    read_entries,
    write_entries,
)

#: The records of GPUs; tests.accuracy, which has this folder too, imports what imports this module.
RECORDS = Path(__file__).parent / "data" / "measured"
#: Those of more ranks than cards, one document by name; and their dry runs.
SHARED_RECORDS = Path(__file__).parent / "data" / "shared_records.json"
#: The first; at stage 3 the second, which prefetches; and one of those that follow.
STEPS = 3
_TIMEOUT_S = 600.0
_MAX_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
_LONGEST_ERROR = 500


def main(arguments: Sequence[str] | None = None, path: Path | None = None) -> int:
    """Dry-run the records that ``arguments`` name, and keep what comes in ``path`` (default: the committed file)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", nargs="*", metavar="RECORD", help="names or files of records (default: all)")
    parser.add_argument("--shared", action="store_true", help="those of more ranks than cards")
    parser.add_argument("--jobs", type=int, default=2, help="dry runs at a time (default 2)")
    options = parser.parse_args(arguments)
    known = sorted(_shared() if options.shared else [path.stem for path in RECORDS.glob("*.json")])
    names = [Path(name).name.removesuffix(".json") for name in options.records] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no such record in {SHARED_RECORDS if options.shared else RECORDS}: {', '.join(unknown)}")
    if options.jobs < 1:
        parser.error("--jobs: at least 1")
    try:
        failed = _run_all(names, known, options.jobs, path or (SHARED_DRY_RUNS if options.shared else DRY_RUNS))
    except KeyboardInterrupt:
        _say("interrupted; what was done is kept")
        return EXIT_INTERRUPTED
    _say(f"{len(names) - failed} of {len(names)} done; now run: python -m tests.accuracy")
    return EXIT_RUN_FAILED if failed else EXIT_OK


@cache
def _shared() -> dict[str, dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = json.loads(SHARED_RECORDS.read_text(encoding="utf-8"))
    return documents


def record_of(name: str) -> Measurement:
    """One of either kind; none has a name of the other kind."""
    document = _shared().get(name)
    return measurement_from_document(document, name) if document else read_measurement(RECORDS / f"{name}.json")


def job_of(record: Measurement, source: str) -> Job:
    """The dry run of what ``record``, of one rank, says was run: as ``dsplan verify --against`` makes it."""
    configuration = record.configuration
    return Job(
        name=configuration.strategy,
        model=shape_from_config(dict(configuration.model), where=source, name=configuration.model_name),
        workload=configuration.workload,
        ds_config=configuration.ds_config,
        device=dry_run_device(measured_accelerator(record.device), "asked for"),
        world_size=configuration.world_size,
        against=Reference(source=source, measurement=record),
        steps=STEPS,
        data=configuration.data,
        rank=record.worst_rank.rank,
    )


def dry_run(name: str) -> tuple[str, dict[str, Any]]:
    """The name and the entry of one record; its process should make no other run, whose size would count."""
    started = time.perf_counter()
    try:
        record = worst_rank_of(record_of(name))
        with tempfile.TemporaryDirectory(prefix="dsplan-dry-") as folder:
            dry, _ = verify(
                job_of(record, f"{name}.json"),
                Path(folder),
                timeout_s=_TIMEOUT_S,
                tolerance_percent=5,
                on_progress=lambda _: None,
            )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return name, entry_of(
            dry,
            seconds=time.perf_counter() - started,
            cpu_seconds=used.ru_utime + used.ru_stime,
            process_bytes=used.ru_maxrss * _MAX_RSS_UNIT,
        )
    except Exception as error:  # one record that fails is no reason to lose the others
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return name, failed_entry(now, f"{type(error).__name__}: {error}"[:_LONGEST_ERROR])


def worst_rank_of(record: Measurement) -> Measurement:
    """``record`` with nothing but the rank that took most."""
    return record.only_rank(record.worst_rank.rank)


def _run_all(names: Sequence[str], known: Sequence[str], jobs: int, path: Path) -> int:
    """Dry-run the records and keep what comes; how many failed."""
    failed = 0
    started = time.perf_counter()
    for done, (name, entry) in enumerate(_entries(names, jobs), start=1):
        write_entries(merged(read_entries(path), {name: entry}, known), path)
        failed += "error" in entry
        elapsed = time.perf_counter() - started
        _say(f"[{done:2}/{len(names)}] {elapsed:4.0f} s  {name:34} {_outcome(name, entry)}")
    return failed


def _entries(names: Sequence[str], jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """In order of their ends; each from a process of its own, whose children are those of one run."""
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(dry_run, names)


def _outcome(name: str, entry: Entry) -> str:
    if "error" in entry:
        return f"failed: {entry['error']}"
    record = worst_rank_of(record_of(name))
    found = compare(record, prediction_from(as_measured(entry, record)), tolerance_percent=5)
    return f"peak {found.peak_allocated.error_percent:+.2f} %  {entry['seconds']:.0f} s"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

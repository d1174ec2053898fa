"""``python -m tests.families.record_runs [CASE...]``: dry runs of the records of transformers' decoders.

Of each record the rank that took most, three steps, for the device of the record; what comes out is kept in
tests/data/hf_dry_runs.json after each of them. All take a few minutes of a core. ``python -m tests.families.report
--table`` then writes the page.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dsplan.verification import verify
from tests.dry_accuracy import job_of
from tests.dry_records import entry_of, merged, read_entries, write_entries
from tests.families.records import DRY_RUNS, records

TIMEOUT_S = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Dry-run the records of the cases that ``arguments`` name, or all."""
    known = records()
    names = list(arguments if arguments is not None else sys.argv[1:]) or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.stderr.write(f"no such record: {', '.join(unknown)}\n")
        return 2
    for name in names:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="dsplan-dry-") as folder:
            dry, _ = verify(
                job_of(known[name], name),
                Path(folder),
                timeout_s=TIMEOUT_S,
                tolerance_percent=5,
                on_progress=lambda _: None,
            )
        entry = entry_of(dry, seconds=time.perf_counter() - begun, cpu_seconds=0, process_bytes=0)
        write_entries(merged(read_entries(DRY_RUNS), {name: entry}, known), DRY_RUNS)
        sys.stderr.write(f"{name}: {time.perf_counter() - begun:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Between what a run can hold at least and at most: ``python -m tests.early_release``.

What an asynchronous collective holds is given back at its wait, or earlier when torch's watchdog, which looks every
100 ms, has seen it done. Dry runs of both are kept in ``tests/data/early_release.json`` for the records of several
ranks with offloaded parameters, where the collectives hold copies that nobody else does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsplan.files import write_text
from dsplan.measurement import STEP_PHASES, Measurement, StepRecord, read_measurement
from dsplan.verification import verify
from tests.dry_accuracy import RECORDS, job_of, worst_rank_of

KEPT = Path(__file__).parent / "data" / "early_release.json"
BETWEEN = Path(__file__).parent / "data" / "between"
EARLIEST, LATEST = "earliest", "latest"
#: From the second step on: the first has states to make, and the second's parameters are where all later ones' are.
STEADY_FROM = 2
_TIMEOUT_S = 600

#: By phase: its level at the end and its peak, in bytes.
Sizes = Mapping[str, tuple[int, int]]


def paths() -> dict[str, Path]:
    """The records of several ranks whose parameters are offloaded and whose watchdog was left alone, by name."""
    found = [path for folder in (RECORDS, BETWEEN) for path in sorted(folder.glob("*.json"))]
    return {path.stem: path for path in found if _holds_copies(read_measurement(path))}


def _holds_copies(record: Measurement) -> bool:
    configuration = record.configuration
    offloads = "offload_param" in configuration.ds_config.get("zero_optimization", {})
    return offloads and configuration.world_size > 1 and not configuration.late_release


def released() -> dict[str, dict[str, Sizes]]:
    """What is kept: by record, :data:`EARLIEST` and :data:`LATEST`."""
    found: dict[str, dict[str, Sizes]] = json.loads(KEPT.read_text(encoding="utf-8"))
    return found


def sizes(step: StepRecord) -> Sizes:
    """Level and peak of each phase."""
    return {name: (step.phases[name].level_bytes, step.phases[name].peak_bytes) for name in STEP_PHASES}


def steady_steps(record: Measurement) -> Iterator[Sizes]:
    """Of every rank, the steps that are alike but for when the watchdog looked."""
    for rank in record.ranks:
        yield from (sizes(step) for step in rank.steps[STEADY_FROM:])


def dry_run(name: str, *, early: bool) -> Sizes:
    """The third step of the record's dry run: the earliest or the latest that collectives give back."""
    path = paths()[name]
    job = replace(job_of(worst_rank_of(read_measurement(path)), path.name), early_release=early)
    with tempfile.TemporaryDirectory(prefix="dsplan-dry-") as folder:
        dry, _ = verify(job, Path(folder), timeout_s=_TIMEOUT_S, tolerance_percent=100, on_progress=lambda _: None)
    return sizes(dry.worst_rank.steps[STEADY_FROM])


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    kept: dict[str, Any] = {}
    for name in paths():
        kept[name] = {EARLIEST: dry_run(name, early=True), LATEST: dry_run(name, early=False)}
        sys.stderr.write(f"{name} {kept[name]}\n")
    write_text(KEPT, json.dumps(kept, indent=1) + "\n", force=True)


if __name__ == "__main__":
    main()

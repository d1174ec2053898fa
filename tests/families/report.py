"""``python -m tests.families.report``: dry runs of the grid into tests/data/decoders.json, tables into docs/models.md.

``--missing`` dry-runs only what the data lack, ``--table`` nothing. All of it takes ten minutes of a core. The table of
records is made from what ``python -m tests.families.record_runs`` has left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsplan.comparison import Comparison, Difference
from dsplan.files import write_text
from tests.families.compared import PHASES, Peaks, dry, error_percent, predicted, rank_of
from tests.families.dry import outcomes
from tests.families.grid import GRID
from tests.families.records import judged

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "decoders.json"
PAGE = ROOT / "docs" / "models.md"
GIB = 1024**3


def measured() -> dict[str, Peaks]:
    """Peaks of the dry runs that are kept, by the name of their setting."""
    return {name: Peaks(**peaks) for name, peaks in json.loads(DATA.read_text(encoding="utf-8"))["peaks"].items()}


def table(found: dict[str, Peaks]) -> str:
    """Errors by family, as a Markdown table; the last row is of all."""
    errors: dict[str, list[float]] = {}
    phases: dict[str, list[float]] = {}
    for setting in GRID:
        theirs, ours = found[setting.name], predicted(setting)
        errors.setdefault(setting.family, []).append(error_percent(ours, theirs))
        phases.setdefault(setting.family, []).extend(
            100 * (getattr(ours, phase) / getattr(theirs, phase) - 1) for phase in PHASES
        )
    rows = [*((family, errors[family], phases[family]) for family in errors)]
    rows.append(("all", [e for each in errors.values() for e in each], [e for each in phases.values() for e in each]))
    lines = [
        "| family | configurations | peak, median | peak, worst | peaks of phases, worst |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {family} | {len(peaks)} | {statistics.median(map(abs, peaks)):.2f} % | {max(peaks, key=abs):+.2f} % "
        f"| {max(each, key=abs):+.2f} % |"
        for family, peaks, each in rows
    ]
    return "\n".join(lines)


def records_table() -> str:
    """Measured peaks and the errors of formulas and dry runs, record by record, as a Markdown table."""
    lines = [
        "| record | ranks | measured, GiB | formulas | dry run | formulas, worst phase | dry run, worst phase |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in judged():
        formulas, dry_run = found.formulas, found.dry_run
        cells = [
            f"`{found.name}`",
            str(found.record.configuration.world_size),
            f"{formulas.peak_allocated.measured_bytes / GIB:.2f}",
            *(_signed(each.peak_allocated) for each in (formulas, dry_run)),
            *(_worst_phase(each) for each in (formulas, dry_run)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _signed(difference: Difference) -> str:
    return f"{difference.error_percent:+.3f} %"


def _worst_phase(comparison: Comparison) -> str:
    worst = max(comparison.phases, key=lambda phase: abs(phase.peak.error_percent or 0))
    where = worst.phase if worst.step == worst.phase else f"{worst.step}, {worst.phase}"
    return f"{_signed(worst.peak)} ({where})"


def page_with(text: str, found: dict[str, Peaks]) -> str:
    """``text`` with both tables between their marks."""
    for name, content in (("dry-runs", table(found)), ("records", records_table())):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def _measure(peaks: dict[str, Any]) -> None:
    """Dry-run what of the grid is not in ``peaks``, and keep each as it comes."""
    begun = time.monotonic()
    versions: dict[str, str] = {}
    specs = {setting.name: setting.spec(rank_of(setting)) for setting in GRID if setting.name not in peaks}
    failed = []
    for name, record in outcomes(specs):
        if isinstance(record, str):
            failed.append(f"{name}: {record}")
            continue
        peaks[name], versions = asdict(dry(record)), record["versions"]
        ordered = {setting.name: peaks[setting.name] for setting in GRID if setting.name in peaks}
        write_text(DATA, json.dumps({"versions": versions, "peaks": ordered}, indent=1) + "\n", force=True)
        sys.stderr.write(f"{len(peaks)} of {len(GRID)}, {time.monotonic() - begun:.0f} s: {name}\n")
    if failed:
        sys.exit("\n".join(failed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--missing", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        _measure({name: asdict(peaks) for name, peaks in measured().items()} if arguments.missing else {})
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), measured()), encoding="utf-8")


if __name__ == "__main__":
    main()

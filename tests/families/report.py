"""``python -m tests.families.report``: dry runs of the grid into tests/data/decoders.json, tables into docs/models.md.

All of it takes ten minutes of a core. ``--missing`` dry-runs what the data lack, ``--older`` also what was made by
other code or versions than are here, ``--table`` nothing: it writes the page, and says how many are older and what is
furthest off. The table of records is made from what ``python -m tests.families.record_runs`` has left.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path

from dsplan.comparison import Comparison, Difference
from dsplan.units import MIB
from tests.families.compared import Peaks, dry, error_percent, errors_percent, predicted, rank_of
from tests.families.dry import outcomes
from tests.families.grid import GRID
from tests.families.kept import DATA, Kept, older, read_kept, told, write_kept
from tests.families.made_by import made_by
from tests.families.records import judged

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
GIB = 1024**3
#: Phases that are further off are named by the command.
NAMED_PERCENT = 0.3


def measured() -> dict[str, Peaks]:
    """Peaks of the dry runs that are kept, by the name of their setting."""
    return {name: kept.peaks for name, kept in read_kept().items()}


def table(found: dict[str, Peaks]) -> str:
    """Errors by family, as a Markdown table; the last row is of all."""
    errors: dict[str, list[float]] = {}
    phases: dict[str, list[float]] = {}
    for setting in GRID:
        theirs, ours = found[setting.name], predicted(setting)
        errors.setdefault(setting.family, []).append(error_percent(ours, theirs))
        phases.setdefault(setting.family, []).extend(errors_percent(ours, theirs).values())
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


def furthest(found: dict[str, Peaks]) -> Iterator[str]:
    """A line for each phase that is further off than ``NAMED_PERCENT``, and for host memory that is by 1 MiB."""
    for setting in GRID:
        ours, theirs = predicted(setting), found[setting.name]
        errors = errors_percent(ours, theirs)
        for name, error in errors.items():
            if abs(error) > NAMED_PERCENT:
                yield f"{error:+.3f} % {ours.named[name] - theirs.named[name]:+,d} {setting.name}: {name}"
        for kind in ("pinned", "pageable"):
            more = getattr(ours, kind) - getattr(theirs, kind)
            if abs(more) > max(NAMED_PERCENT / 100 * getattr(theirs, kind), MIB):
                yield f"{more:+,d} {setting.name}: {kind} of {getattr(theirs, kind):,d}"


def _measure(kept: dict[str, Kept], wanted: Collection[str]) -> None:
    """Dry-run what of the grid is ``wanted``, and keep each as it comes."""
    begun = time.monotonic()
    settings = {setting.name: setting for setting in GRID if setting.name in wanted}
    makers = {name: made_by(told(setting)) for name, setting in settings.items()}
    failed = []
    specs = {name: setting.spec(rank_of(setting)) for name, setting in settings.items()}
    for number, (name, record) in enumerate(outcomes(specs), start=1):
        if isinstance(record, str):
            failed.append(f"{name}: {record}")
            continue
        today = datetime.now(timezone.utc).date().isoformat()
        kept[name] = Kept(peaks=dry(record), made_by=makers[name], date=today)
        write_kept({setting.name: kept[setting.name] for setting in GRID if setting.name in kept})
        sys.stderr.write(f"{number} of {len(specs)}, {time.monotonic() - begun:.0f} s: {name}\n")
    if failed:
        sys.exit("\n".join(failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--table", action="store_true", help="no dry runs")
    only.add_argument("--missing", action="store_true", help="dry runs of what is missing only")
    only.add_argument("--older", action="store_true", help="dry runs of what is missing or older than this code only")
    options = parser.parse_args()
    kept = read_kept() if DATA.exists() else {}
    names = [setting.name for setting in GRID]
    if options.older:
        names = older(kept, GRID)
    elif options.missing:
        names = [name for name in names if name not in kept]
    if not options.table:
        _measure(kept, names)
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), measured()), encoding="utf-8")
    left = older(read_kept(), GRID)
    sys.stderr.write(f"{len(left)} of {len(GRID)} dry runs are of other code or versions than are here\n")
    for line in furthest(measured()):
        sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()

"""``python -m tests.families.report``: dry runs of the grid into tests/data/decoders.json, a table into docs/models.md.

``--missing`` dry-runs only what the data lack, ``--table`` nothing. All of it takes ten minutes of a core.
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

from tests.families.compared import PHASES, Peaks, dry, error_percent, predicted, rank_of
from tests.families.dry import outcomes
from tests.families.grid import GRID

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "decoders.json"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- dry-runs -->", "<!-- /dry-runs -->"


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


def page_with(text: str, found: dict[str, Peaks]) -> str:
    """``text`` with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def _measure(peaks: dict[str, Any]) -> None:
    """Dry-run what of the grid is not in ``peaks``, and keep all."""
    begun = time.monotonic()
    versions: dict[str, str] = {}
    specs = {setting.name: setting.spec(rank_of(setting)) for setting in GRID if setting.name not in peaks}
    for name, record in outcomes(specs):
        assert not isinstance(record, str), f"{name}: {record}"
        peaks[name], versions = asdict(dry(record)), record["versions"]
        sys.stderr.write(f"{len(peaks)} of {len(GRID)}, {time.monotonic() - begun:.0f} s: {name}\n")
    ordered = {setting.name: peaks[setting.name] for setting in GRID}
    DATA.write_text(json.dumps({"versions": versions, "peaks": ordered}, indent=1) + "\n", encoding="utf-8")


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

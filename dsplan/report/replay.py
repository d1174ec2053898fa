"""The replay of published cases as tables, and as a document valid under ``schemas/replay.schema.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsplan import __version__
from dsplan.replay.cases import case, cases
from dsplan.replay.headline import Largest, Reach
from dsplan.replay.phases import PhaseTable
from dsplan.replay.result import Replay
from dsplan.replay.verdicts import (
    COUNTS,
    DIFFERENCE,
    FITS,
    LEVELS,
    PARAMETERS,
    PEAKS,
    REFUSED,
    RUNS,
    SECTIONS,
    SHOWN,
    Row,
)
from dsplan.report.console import print_table
from dsplan.units import GIB, MIB

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Raised when a key changes its meaning or goes; a new key does not raise it.
SCHEMA_VERSION = 1

_TITLES = {
    COUNTS: "Parameters",
    PEAKS: "Peaks of allocated memory over the steps, MiB",
    DIFFERENCE: "What offloading the optimizer saves at 1.7B, MiB",
    LEVELS: "Allocated between steps, GiB",
    FITS: "Fits, or out of memory",
    REFUSED: "Refused: below a lower bound, or another run's figures, MiB",
    SHOWN: "Shown, and not judged, MiB",
}
_RUNS = {1: "ran", 0: "out of memory", None: "-"}
_REASONED = (DIFFERENCE, FITS, REFUSED, SHOWN)
_LEVELS_REMARK = (
    "ResNet-18 and GPT-lite are known by their tensors only, so their peaks, which activations make, are not judged."
)


def print_replay(console: Console, replay: Replay) -> None:
    """Print every section; 80 columns are enough, and it reads the same without colour."""
    for section in SECTIONS:
        found = [row for row in replay.rows if row.section == section]
        _title(console, _TITLES[section])
        print_table(console, _rows_table(found))
        if section in _REASONED:
            _print_reasons(console, found)
        if section == LEVELS:
            console.print(_LEVELS_REMARK)
        for row in found:
            if section == PEAKS and row.summands:
                console.print()
                console.print(f"{row.case}: {row.reason}")
                console.print(_summands(row))
    _title(console, "Gaudi's phases, MiB: shown, and not judged")
    console.print(_phases(replay.phases))
    console.print(
        "In lazy mode the graph runs after the backward pass: no activations show before, and tensors live on that "
        "CUDA frees. --dry-run adds the dry run's phases."
    )
    _title(console, "How far memory goes: the largest model on 8 x A100 40 GB and 1 TB")
    console.print(_reaches(replay.reaches))
    console.print(
        "The benchmark's family at the published width, with its batch of 8. with room: also with the fragmentation "
        "that runs have needed; at most: without any."
    )
    console.print()
    console.print(_conclusion(replay), style="bold")


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold")


def _rows_table(rows: Sequence[Row]) -> Table:
    section = rows[0].section
    table = _table("", "published", "lower bound" if section == REFUSED else "dsplan", "error")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        error = "" if row.error is None or row.section in (COUNTS, REFUSED) else f"{row.error:+.1%}"
        table.add_row(
            row.case,
            _figure(row, row.published),
            _figure(row, row.predicted),
            error,
            row.verdict,
            style="bold red" if row.holds is False else None,
        )
    return table


def _table(first: str, *numbers: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figure(row: Row, value: int | None) -> str:
    if row.unit == RUNS:
        return _RUNS[value]
    if value is None:
        return "-"
    if row.unit == PARAMETERS:
        return f"{value:,}"
    return f"{value / GIB:.3f}" if row.section == LEVELS else _mib(value)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f}"


def _print_reasons(console: Console, rows: Iterable[Row]) -> None:
    """Each reason once, with the rows that share it."""
    shared: dict[str, list[str]] = {}
    for row in rows:
        shared.setdefault(row.reason, []).append(row.case)
    for reason, names in shared.items():
        console.print(f"- {', '.join(names)}: {reason}")


def _summands(row: Row) -> Table:
    table = _table("", "MiB")
    table.add_column("", ratio=1)
    for part in row.summands:
        sign = "" if part is row.summands[0] else "+" if part.size_bytes >= 0 else ""
        table.add_row(f"  {part.name}", f"{sign}{_mib(part.size_bytes)}", part.note)
    table.add_row("  published", _figure(row, row.published), "")
    return table


def _phases(tables: Sequence[PhaseTable]) -> Table:
    table = _table("", "before", "forward", "backward", "step", "highest")
    for one in tables:
        table.add_row(f"{one.case}")
        for line in one.lines:
            sizes = (line.before_bytes, line.forward_bytes, line.backward_bytes, line.step_bytes, line.highest_bytes)
            table.add_row(f"  {line.source}, {line.step} step", *(f"{size / MIB:,.0f}" for size in sizes))
    return table


def _reaches(reaches: Sequence[Reach]) -> Table:
    table = _table("", "published", "with room", "at most")
    table.add_column("one layer more", ratio=1)
    for one in reaches:
        table.add_row(
            one.technique,
            f"{one.published / 1e9:.2f}B",
            _largest(one.fits),
            _largest(one.can_run),
            one.stopped_by,
        )
    return table


def _largest(found: Largest | None) -> str:
    return "none" if found is None else f"{found.num_parameters / 1e9:.2f}B"


def _conclusion(replay: Replay) -> str:
    judged = sum(row.holds is not None for row in replay.rows)
    if replay.holds:
        return f"All {judged} verdicts are as they should be; {len(replay.rows) - judged} rows are shown without one."
    names = ", ".join(row.case for row in replay.failed)
    return f"{len(replay.failed)} of {judged} verdicts are not as they should be: {names}"


def replay_document(replay: Replay) -> dict[str, Any]:
    """The whole replay; sizes are integers of bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "holds": replay.holds,
        "rows": [{**asdict(row), "error": row.error, **_origin(row)} for row in replay.rows],
        "phases": [asdict(table) for table in replay.phases],
        "reaches": [asdict(reach) for reach in replay.reaches],
    }


def _origin(row: Row) -> dict[str, Any]:
    """Who published it, of a row that is a case's."""
    if row.case not in {one.id for one in cases()}:
        return {"source": None, "hardware": None, "software": None, "metric": None, "technique": None, "model": None}
    one = case(row.case)
    setup = one.setup
    return {
        "source": setup.source,
        "hardware": setup.hardware,
        "software": setup.software,
        "metric": setup.metric,
        "technique": one.technique,
        "model": one.model.name,
    }

"""What only a dry run can say: what it stood for, and what its peak is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsplan.dry_run import INIT, DryRun, Peak
from dsplan.measurement import Measurement
from dsplan.report.console import print_table
from dsplan.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Lines of source that are listed one by one.
SHOWN_LINES = 15

#: (bytes, storages)
_Size = tuple[int, int]


def stood_for(measurement: Measurement, dry_run: DryRun) -> Iterator[str]:
    """Of which rank, for which device, and how much was followed and answered."""
    rank, ranks = measurement.worst_rank.rank, measurement.configuration.world_size
    yield f"A dry run, no device was used: rank {rank} of {ranks}, standing for {measurement.device.name}."
    questions = _count(dry_run.num_answers, "question")
    yield (
        f"{dry_run.num_events:,} allocation events in {dry_run.seconds:.1f} s; {questions} about data answered by rule."
    )
    allocator = dry_run.allocator
    if allocator.settings:
        yield f"Allocator settings: {allocator.settings}."
    if allocator.num_alloc_retries:
        yield f"The allocator gave back its cache and tried again {_times(allocator.num_alloc_retries)}."


def print_peak(console: Console, dry_run: DryRun) -> None:
    """Print what is live at the peak of the worst phase."""
    peak = dry_run.worst_peak
    if peak is None:
        return
    moment = "the initialisation" if peak.step == INIT else f"{peak.phase} of step {int(peak.step) + 1}"
    console.print(f"\nThe peak, in {moment}, by cause and line of source:", style="bold")
    print_table(console, peak_table(peak))


def peak_table(peak: Peak) -> Table:
    """Causes, largest first, each with its lines among the largest ones; the rest of the lines together."""
    from rich.table import Table

    lines: defaultdict[tuple[str, str], _Size] = defaultdict(lambda: (0, 0))
    causes: defaultdict[str, _Size] = defaultdict(lambda: (0, 0))
    for term in peak.terms:
        lines[term.cause, term.where] = _plus(lines[term.cause, term.where], (term.bytes, term.count))
        causes[term.cause] = _plus(causes[term.cause], (term.bytes, term.count))
    largest = sorted(lines, key=lambda key: -lines[key][0])
    shown, rest = set(largest[:SHOWN_LINES]), largest[SHOWN_LINES:]

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("size", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cause and line", overflow="fold")
    table.add_column("tensors", justify="right", no_wrap=True)
    for cause in sorted({cause for cause, _ in shown}, key=lambda cause: -causes[cause][0]):
        _row(table, cause, causes[cause], peak.bytes, style="bold")
        for key in largest:
            if key[0] == cause and key in shown:
                _row(table, f"  {key[1]}", lines[key], peak.bytes)
    if rest:
        size, count = 0, 0
        for key in rest:
            size, count = _plus((size, count), lines[key])
        _row(table, f"the rest: {_count(len(rest), 'smaller line')}", (size, count), peak.bytes)
    missing = peak.bytes - sum(size for size, _ in causes.values())
    if missing:
        table.add_row(format_bytes(missing), _share(missing, peak.bytes), "in no term: please report this", "")
    total = sum(count for _, count in causes.values())
    table.add_row(format_bytes(peak.bytes), "100.0 %", f"= allocated, {peak.bytes:,} bytes", f"{total:,}", style="bold")
    return table


def _row(table: Table, name: str, size: _Size, total: int, *, style: str | None = None) -> None:
    table.add_row(format_bytes(size[0]), _share(size[0], total), name, f"{size[1]:,}", style=style)


def _plus(first: _Size, second: _Size) -> _Size:
    return first[0] + second[0], first[1] + second[1]


def _share(size: int, total: int) -> str:
    return f"{100 * size / total:.1f} %" if total else "-"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"

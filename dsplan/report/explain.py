"""Where the bytes come from: every term at a plan's peak, and the phases around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsplan.estimate import Estimate, PlanEstimate
from dsplan.ledger import DEVICE, PHASES, MemoryTerm, PhaseMemory
from dsplan.report.console import print_table
from dsplan.report.legend import legend
from dsplan.report.table import WIDE
from dsplan.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_explanation(console: Console, estimate: Estimate, row: PlanEstimate) -> None:
    """Print the terms at the peak of ``row``, their sum, and the level and peak of every phase."""
    device, wide = row.device, console.width >= WIDE
    # On the CPU the device's memory is the host's, and every place counts.
    shared = estimate.cluster.accelerator is not None and estimate.cluster.accelerator.kind == "cpu"
    inside = [term for term in row.terms if shared or term.place == DEVICE]
    outside = [term for term in row.terms if term not in inside]

    console.print()
    console.print(f"{row.plan.name}: {_peak(row)}", style="bold")
    letters = legend(estimate.model, row.plan, estimate.cluster)
    console.print(", ".join(f"{letter}={number:,}" for letter, number in letters.items()))
    console.print()
    print_table(console, terms_table(inside, total=device.peak_bytes, label="= allocated at the peak", wide=wide))
    console.print()
    console.print(_device_line(row))
    if outside:
        console.print()
        console.print("CPU memory of one rank at that moment:")
        total = sum(term.size_bytes for term in outside)
        print_table(console, terms_table(outside, total=total, label="= on the CPU", wide=wide))
    console.print(
        f"CPU memory at its own peaks: {format_bytes(row.host.pinned_bytes)} pinned and "
        f"{format_bytes(row.host.pageable_bytes)} pageable per rank; {format_bytes(row.host.bytes_per_node)} per node."
    )
    console.print()
    print_table(console, phases_table(row))
    if row.reason:
        console.print(row.reason)


def terms_table(terms: list[MemoryTerm], *, total: int, label: str, wide: bool) -> Table:
    """One term a row, largest first, and a last row that says whether they add up to ``total`` bytes."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for heading in ("term", "formula", "source") if wide else ("term: formula (source)",):
        table.add_column(heading, overflow="fold")
    for term in terms:
        count = f" ({term.num_tensors} tensors)" if term.num_tensors > 1 else ""
        where = "" if term.place == DEVICE else f" [{term.place}]"
        name = f"{term.name}{where}{count}"
        rest = (name, term.formula, term.source) if wide else (f"{name}\n  {term.formula}\n  ({term.source})",)
        table.add_row(format_bytes(term.size_bytes), _share(term.size_bytes, total), *rest)
    missing = total - sum(term.size_bytes for term in terms)
    if missing:
        table.add_row(format_bytes(missing), _share(missing, total), "not in any term: please report this")
    table.add_row(format_bytes(total), "100.0 %", f"{label}, {total:,} bytes", style="bold")
    return table


def phases_table(row: PlanEstimate) -> Table:
    """Level at the end and peak within each phase: initialisation, first step, steady state."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("step", "phase"):
        table.add_column(heading, no_wrap=True)
    for heading in ("level", "peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("moment of the peak")
    phases: list[tuple[str, str, PhaseMemory]] = [
        *(("", name, row.device.phases[name]) for name in PHASES[:1] if name in row.device.phases),
        *(("first step", name, row.device.first_step[name]) for name in PHASES if name in row.device.first_step),
        *(("steady state", name, row.device.phases[name]) for name in PHASES[1:] if name in row.device.phases),
    ]
    for step, name, phase in phases:
        table.add_row(step, name, format_bytes(phase.level_bytes), format_bytes(phase.peak_bytes), phase.peak_moment)
    return table


def _peak(row: PlanEstimate) -> str:
    device = row.device
    step = "" if device.peak_step == "init" else f" of the {device.peak_step}"
    moment = f" ({device.peak_moment})" if device.peak_moment else ""
    return f"peak of {format_bytes(device.peak_bytes)} on the GPU in {device.peak_phase}{step}{moment}"


def _device_line(row: PlanEstimate) -> str:
    """Allocated, what lies beside it, fragmentation (replayed where that was done, else bounded), and what is left."""
    device = row.device
    least = None if row.pressed is None else row.pressed.least_bytes
    allocator = device.device_bound_bytes - device.peak_bytes - device.overhead_bytes
    if least is None:
        fragmentation = f"fragmentation may add up to {format_bytes(allocator)}"
    else:
        fragmentation = (
            f"with the fragmentation of a replay it lives with {format_bytes(least + device.overhead_bytes)}"
        )
    room = ""
    if row.headroom_bytes is not None:
        room = f"; {format_bytes(abs(row.headroom_bytes))} {'left' if row.headroom_bytes >= 0 else 'short'}"
    return (
        f"Device: {format_bytes(device.peak_bytes)} allocated "
        f"+ {format_bytes(device.overhead_bytes)} context and communication "
        f"= {format_bytes(device.device_bytes)}; {fragmentation}{room}."
    )


def _share(size: int, total: int) -> str:
    return f"{100 * size / total:.1f} %" if total else "-"

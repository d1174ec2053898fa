"""The comparison: one row a plan, the recommended one marked, and why it is recommended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsplan.estimate import BY_DRY_RUN, DOES_NOT_FIT, FITS, TIGHT, DeviceEstimate, Estimate, PlanEstimate
from dsplan.ledger import DEVICE
from dsplan.overhead import PROCESS_HOST_BYTES
from dsplan.recommend import lacks_drive, whole_context
from dsplan.report.console import is_wider, print_table
from dsplan.report.header import filled_lines, header_lines
from dsplan.units import GIB, format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dsplan.dsconfig.read import DsConfig

#: Columns of a terminal from which on tables have columns that can be done without.
WIDE = 110


def print_estimate(
    console: Console, estimate: Estimate, *, inferred: str | None = None, ds_config: DsConfig | None = None
) -> None:
    """Print the whole comparison; it fits 80 columns and reads the same without colour."""
    for line in header_lines(estimate.model, estimate.plans[0].plan.workload, estimate.cluster, inferred):
        console.print(line)
    for line in filled_lines(ds_config) if ds_config is not None else ():
        console.print(line)
    console.print()
    table = comparison_table(estimate, wide=True)
    print_table(console, comparison_table(estimate, wide=False) if is_wider(console, table) else table)
    console.print()
    console.print(_legend(estimate))
    if estimate.cluster.accelerator is None:
        console.print()
        print_table(console, cards_table(estimate))
        console.print()
    console.print(_conclusion(estimate), style="bold")
    for row in estimate.plans:
        if len(estimate.plans) == 1 or row.judged_by == BY_DRY_RUN:
            for line in verdict_lines(row):
                console.print(line)


def _legend(estimate: Estimate) -> str:
    """What the columns are."""
    said = [
        "Sizes in GiB. GPU peak: allocated on the worst rank; 1st: in the first step only. CPU: per node; the process "
        f"of each rank takes {_gib(PROCESS_HOST_BYTES, 1)} more."
    ]
    if estimate.cluster.accelerator is None or len(estimate.plans) == 1:
        return said[0]
    if _laddered(estimate):
        said.append("max batch, max seq: the largest of each that fits, by replays of the allocator.")
    else:
        said.append("left: on the GPU. max batch: about, by a bound on fragmentation; --ladder replays it.")
    return " ".join(said)


def _laddered(estimate: Estimate) -> bool:
    return any(row.max_sequence_length is not None for row in estimate.plans)


def verdict_lines(row: PlanEstimate) -> list[str]:
    """What the verdict of one plan rests on, and what would help it."""
    pressed, device, lines = row.pressed, row.device, []
    if row.judged_by == BY_DRY_RUN:
        lines.append(f"{row.plan.name} was judged by a dry run of the real engine, with the device's memory.")
    if pressed is not None and pressed.reserved_bytes is not None and pressed.reserved_bound_bytes is not None:
        shown = pressed.reserved_bytes + device.overhead_bytes
        lines.append(
            f"Allocated {format_bytes(device.peak_bytes)}; reserved {format_bytes(pressed.reserved_bytes)} where there "
            f"is room, at most {format_bytes(pressed.reserved_bound_bytes)}; device {format_bytes(shown)}."
        )
    if pressed is not None and pressed.least_bytes is not None:
        lines.append(
            f"It lives with {format_bytes(pressed.least_bytes)} for torch's allocator, which the device offers "
            f"{format_bytes(pressed.offered_bytes)}."
        )
    if row.max_sequence_length is not None:
        size, length = row.max_micro_batch_size, row.max_sequence_length
        lines.append(
            f"By replays, micro batch {size} is the largest that fits, and {length} tokens the longest sequence with "
            f"micro batch {row.plan.workload.micro_batch_size}."
        )
    lines.append(_on_host(row))
    if row.verdict == DOES_NOT_FIT and row.terms:
        largest = [term for term in row.terms if term.place == DEVICE][:3]
        names = ", ".join(f"{term.name} {format_bytes(term.size_bytes)}" for term in largest)
        lines.append(f"Most of the peak: {names}.")
    for remedy in row.remedies:
        lines.append(f"  {remedy.change}: needs {format_bytes(remedy.saved_bytes)} less, {_ends(remedy.verdict)}")
    return lines


def _on_host(row: PlanEstimate) -> str:
    """The node's memory, the processes of its ranks and all."""
    host = row.host
    most = host.bound_bytes_per_node
    bound = f", at most {format_bytes(most)}" if most > host.bytes_per_node else ""
    return f"CPU memory of a node with its ranks' processes: {format_bytes(host.bytes_per_node)}{bound}."


def _ends(verdict: str) -> str:
    return {FITS: "then it fits", TIGHT: "then it is tight"}.get(verdict, "and still does not fit")


def comparison_table(estimate: Estimate, *, wide: bool) -> Table:
    """The table alone; sizes in GiB."""
    from rich.table import Table

    known, alone = estimate.cluster.accelerator is not None, len(estimate.plans) == 1
    laddered = known and len(estimate.plans) > 1 and _laddered(estimate)
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="bold")
    table.add_column("\n  strategy", no_wrap=True)
    table.add_column("GPU\npeak", justify="right", no_wrap=True)
    table.add_column("\nin", no_wrap=True)
    if wide:
        table.add_column("\nmoment")
    table.add_column("CPU\npinned", justify="right", no_wrap=True)
    table.add_column("CPU\npageable", justify="right", no_wrap=True)
    if known:
        table.add_column("fits?\n(left)", no_wrap=True)
        table.add_column("max\nbatch", justify="right", no_wrap=True)
        if laddered:
            table.add_column("max\nseq", justify="right", no_wrap=True)
    else:
        table.add_column("fits on", no_wrap=True)
    for row in estimate.plans:
        recommended = row.plan.name == estimate.recommended and len(estimate.plans) > 1
        cells = [
            f"{'*' if recommended else ' '} {row.plan.name}",
            _gib(row.device.peak_bytes, 2),
            _where(row.device, wide=wide),
            *([row.device.peak_moment] if wide else []),
            *_host(row, estimate.cluster.gpus_per_node),
            *([_fits(row), _batch(row, alone=alone)] if known else [_smallest_card(row)]),
            *([_count(row.max_sequence_length)] if laddered else []),
        ]
        table.add_row(*cells, style="bold green" if recommended else "dim" if row.verdict == DOES_NOT_FIT else None)
    return table


def cards_table(estimate: Estimate) -> Table:
    """Which catalogued cards the plans fit on, smallest first; plans that fit the same cards share a row."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("plans", ratio=1)
    table.add_column("fit on", ratio=1)
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in estimate.plans:
        groups.setdefault(tuple(_by_memory(row.fits_on)), []).append(row.plan.name)
    for cards, plans in groups.items():
        table.add_row(", ".join(plans), ", ".join(cards) or "no card of the catalogue")
    return table


def _where(device: DeviceEstimate, *, wide: bool) -> str:
    if device.peak_step == "init":
        return "init"
    if wide:
        return f"{device.peak_phase}, {device.peak_step}"
    return f"1st {device.peak_phase}" if device.peak_step == "first step" else device.peak_phase


def _host(row: PlanEstimate, ranks: int) -> tuple[str, str]:
    """Pinned and pageable memory of a node; the estimate has them per rank."""
    return _gib(ranks * row.host.pinned_bytes, 1), _gib(ranks * row.host.pageable_bytes, 1)


def _fits(row: PlanEstimate) -> str:
    if row.headroom_bytes is None:
        return row.verdict
    left = _gib(row.headroom_bytes, 1)
    if row.verdict == FITS:
        return f"yes {left}"
    if row.verdict == TIGHT:
        return f"tight {left}"
    # With room on the device it is the other memory that is short.
    return f"no {left}" if row.headroom_bytes < 0 else "no: CPU"


def _batch(row: PlanEstimate, *, alone: bool) -> str:
    """The largest micro batch; ~ where nothing but the closed bound says so.

    Of one plan it is found by replays where there is an allocator to replay (``closely``), of several on a ladder.
    """
    found = _count(row.max_micro_batch_size)
    replayed = row.max_sequence_length is not None or (alone and row.pressed is not None)
    return found if replayed or not row.max_micro_batch_size else f"~{found}"


def _count(number: int | None) -> str:
    return "?" if number is None else str(number)


def _smallest_card(row: PlanEstimate) -> str:
    cards = _by_memory(row.fits_on)
    if not cards:
        return "no card"
    return cards[0] if len(cards) == 1 else f"{cards[0]} +{len(cards) - 1}"


def _by_memory(names: Sequence[str]) -> list[str]:
    from dsplan.catalogue import accelerators

    memory = {card.name: card.memory_bytes or 0 for card in accelerators()}
    return sorted(names, key=lambda name: memory.get(name, 0))


def _gib(size_bytes: int, decimals: int) -> str:
    """GiB without a unit; from 1000 on one decimal less, so that 80 columns hold the widest row."""
    return f"{size_bytes / GIB:,.{decimals if abs(size_bytes) < 1000 * GIB else decimals - 1}f}"


def _conclusion(estimate: Estimate) -> str:
    """The recommendation; of one plan, which is no choice, whether it fits."""
    if len(estimate.plans) == 1:
        return _verdict(estimate.plans[0])
    if estimate.recommended is None:
        whole = whole_context(estimate.model, estimate.plans[0].plan.workload)
        return f"No recommendation: {estimate.recommendation_reason}{whole}"
    zero = next(row.plan.zero for row in estimate.plans if row.plan.name == estimate.recommended)
    drive = "; it needs an NVMe drive on each node (--nvme-path)" if lacks_drive(zero) else ""
    return f"* Recommended: {estimate.recommended}: {estimate.recommendation_reason}{drive}"


def _verdict(row: PlanEstimate) -> str:
    if row.verdict == DOES_NOT_FIT:
        return f"{row.plan.name} does not fit: {row.reason}"
    if row.verdict == FITS:
        left = "" if row.headroom_bytes is None else f": {format_bytes(row.headroom_bytes)} of the device are left"
        return f"{row.plan.name} fits{left}"
    if row.verdict == TIGHT:
        return f"{row.plan.name} is tight: {row.reason}"
    return f"{row.plan.name}: name a device with --gpu to see whether it fits"

"""What a verification found: the steps as measured, the prediction against them, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from dsplan.comparison import Comparison, Difference
from dsplan.heap_threshold import REMEDY
from dsplan.measurement import STEP_PHASES, HostRecord, Measurement, RankRecord, StepRecord
from dsplan.report.dry_run import print_peak, stood_for
from dsplan.units import MIB, format_bytes
from dsplan.verify_device import CPU

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Of what is resident: what malloc keeps is said from here on.
MUCH_KEPT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What the two sides of a comparison are called.

    Attributes:
        title: of the table of phases.
        predicted: heading of the predicted column.
        measured: heading of the measured column.
        verdict: both peaks in a sentence, with ``{0}`` and ``{1}`` for the sizes.
        digits: of a percentage after the point; what a dry run is off by would often be 0.0.
    """

    title: str
    predicted: str = "predicted"
    measured: str = "measured"
    verdict: str = "peak {0} predicted, {1} measured"
    digits: int = 1


_REAL = Sides(title="Predicted against measured, MiB, worst rank (+: predicted too much):")
_FORMULA = Sides(
    title="Formula against the dry run, MiB, the same rank (+: predicted too much):",
    predicted="formula",
    measured="dry run",
    verdict="formula against the dry run, peak {0} against {1}",
    digits=2,
)
_RECORD = Sides(
    title="Dry run against the record, MiB, the same rank (+: the dry run has more):",
    predicted="dry run",
    measured="measured",
    verdict="dry run against the record, peak {0} against {1}",
    digits=2,
)


def print_verification(
    console: Console,
    measurement: Measurement,
    comparison: Comparison | None,
    *,
    explain: bool = False,
    not_covered: Sequence[str] = (),
) -> None:
    """Print everything; it fits 80 columns and reads the same without colour.

    ``explain`` adds what the peak of a dry run is made of; a real run cannot tell. ``not_covered`` is why there is
    no comparison.
    """
    for line in _header(measurement, comparison):
        console.print(line)
    rank, dry_run = measurement.worst_rank, measurement.dry_run
    found = "Measured" if dry_run is None else "Found"
    console.print(f"\n{found} on {_which(measurement, rank)}, MiB allocated:", style="bold")
    console.print(steps_table(rank))
    if comparison is not None:
        _print_comparison(console, measurement, comparison)
    for line in _footnotes(measurement, comparison):
        console.print(line)
    if explain and dry_run is not None:
        print_peak(console, dry_run)
    console.print()
    if comparison is None:
        console.print(f"The formulas do not cover {', '.join(not_covered)}: the dry run stands alone.", style="bold")
    else:
        style = "bold green" if comparison.within_tolerance else "bold red"
        console.print(verdict(comparison, _sides(measurement, comparison)), style=style)


def _print_comparison(console: Console, measurement: Measurement, comparison: Comparison) -> None:
    sides = _sides(measurement, comparison)
    console.print(f"\n{sides.title}", style="bold")
    console.print(phases_table(comparison, sides))
    if comparison.num_skipped_steps:
        console.print(
            f"Left out: {_count(comparison.num_skipped_steps, 'skipped step')} (fp16 gradients overflowed, no update)."
        )
    if comparison.peak_reserved is not None or comparison.peak_device is not None:
        console.print("\nDevice at most, MiB (not judged):", style="bold")
        console.print(device_table(comparison, sides))
    console.print("\nCPU memory of a rank, MiB (not judged):", style="bold")
    console.print(host_table(comparison, sides))


def steps_table(rank: RankRecord) -> Table:
    """Level before and after each phase, the peak within, and each step's maximum; equal steps share their rows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("step", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    for heading in ("before", "after", "peak", "maximum"):
        table.add_column(heading, justify="right", no_wrap=True)
    init = rank.init
    table.add_row("init", "init", *_mib(init.level_before_bytes, init.level_bytes, init.peak_bytes, init.peak_bytes))
    for name, step in _distinct_steps(rank):
        for position, phase in enumerate(STEP_PHASES):
            found = step.phases[phase]
            first = position == 0
            sizes = _mib(found.level_before_bytes, found.level_bytes, found.peak_bytes)
            table.add_row(name if first else "", phase, *sizes, *(_mib(step.peak_bytes) if first else ("",)))
    return table


def phases_table(comparison: Comparison, sides: Sides = _REAL) -> Table:
    """Level and peak of every phase, predicted and measured, with the signed error."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\nstep", no_wrap=True)
    table.add_column("\nphase", no_wrap=True)
    for above in ("level", "peak"):
        for heading in (f"{above}\n{sides.predicted}", f"\n{sides.measured}", "\nerror"):
            table.add_column(heading, justify="right", no_wrap=True)
    above = ""
    for found in comparison.phases:
        step, above = "" if found.step == above else found.step, found.step
        table.add_row(step, found.phase, *_cells(found.level, sides), *_cells(found.peak, sides))
    table.add_row("all steps", "", "", "", "", *_cells(comparison.peak_allocated, sides), style="bold")
    return table


def host_table(comparison: Comparison, sides: Sides = _REAL) -> Table:
    """Host memory, predicted and measured, with the signed error in bytes and percent."""
    return _table((("pinned", comparison.host_pinned), ("all, over the start", comparison.host_total)), sides)


def device_table(comparison: Comparison, sides: Sides) -> Table:
    """Reserved and device memory, where both sides know it."""
    rows = (("reserved", comparison.peak_reserved), ("shown by the driver", comparison.peak_device))
    return _table(rows, sides)


def verdict(comparison: Comparison, sides: Sides = _REAL) -> str:
    """One sentence: whether the peak over the steps was predicted within the tolerance."""
    peak = comparison.peak_allocated
    word = "Confirmed" if comparison.within_tolerance else "Refuted"
    sizes = sides.verdict.format(format_bytes(peak.predicted_bytes), format_bytes(peak.measured_bytes))
    return f"{word}: {sizes}: {_error(peak, sides)} (tolerance {comparison.tolerance_percent:g} %)."


def _table(rows: tuple[tuple[str, Difference | None], ...], sides: Sides) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for heading in (sides.predicted, sides.measured, "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, difference in rows:
        table.add_row(name, *(("", "unknown", "") if difference is None else _cells(difference, sides)))
    return table


def _sides(measurement: Measurement, comparison: Comparison) -> Sides:
    if comparison.against is not None:
        return _RECORD
    return _REAL if measurement.dry_run is None else _FORMULA


def _header(measurement: Measurement, comparison: Comparison | None) -> Iterator[str]:
    configuration = measurement.configuration
    workload, versions = configuration.workload, measurement.versions
    kind = workload.activation_checkpointing
    recomputed = "" if kind == "none" else f", checkpointing by {kind}"
    batches = _count(workload.gradient_accumulation_steps, "micro batch", "es")
    yield f"{configuration.strategy}: {configuration.model_name}, {configuration.num_parameters:,} parameters."
    yield (
        f"{workload.precision}, {measurement.optimizer}, {batches} of {workload.micro_batch_size} x "
        f"{workload.sequence_length} tokens a step{recomputed}."
    )
    libraries = ", ".join(f"{name} {versions[name]}" for name in versions if name != "python")
    if measurement.dry_run is not None:
        yield from stood_for(measurement, measurement.dry_run)
        yield f"With {libraries}."
        if comparison is not None and comparison.against is not None:
            yield f"Held against {comparison.against}."
        return
    ranks = _count(configuration.world_size, "rank")
    yield f"{ranks} on {measurement.device.kind}: {measurement.device.name}; {libraries}."


def _which(measurement: Measurement, rank: RankRecord) -> str:
    ranks = measurement.configuration.world_size
    if ranks == 1:
        return "the only rank"
    took_most = "" if measurement.dry_run is not None else ", which took most"
    return f"rank {rank.rank} of {ranks}{took_most}"


def _distinct_steps(rank: RankRecord) -> Iterator[tuple[str, StepRecord]]:
    """Steps with a name such as ``2-4`` for neighbours that measured the same."""
    for _, group in groupby(rank.steps, key=lambda step: (step.skipped, dict(_shown(step)))):
        same = list(group)
        first, last = same[0].index + 1, same[-1].index + 1
        name = f"{first}" if first == last else f"{first}-{last}"
        yield f"{name}{' skipped' if same[0].skipped else ''}", same[0]


def _shown(step: StepRecord) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, phase in step.phases.items():
        yield name, _mib(phase.level_before_bytes, phase.level_bytes, phase.peak_bytes)


def _footnotes(measurement: Measurement, comparison: Comparison | None) -> Iterator[str]:
    dry_run = measurement.dry_run
    if comparison is None and dry_run is not None:
        host = dry_run.host
        yield (
            f"CPU memory of a rank: {format_bytes(host.pinned_bytes + host.locked_bytes)} pinned, "
            f"{format_bytes(host.pageable_bytes)} "
            f"pageable, over a process of {format_bytes(host.process_bytes)}."
        )
    elif dry_run is None:
        yield "All: peak resident memory over what was resident before the model."
        yield from _kept(measurement.worst_rank.host)
    else:
        resident = "; measured: resident" if comparison is not None and comparison.against is not None else ""
        yield (
            f"All: pageable and pinned tensors over a process of {format_bytes(dry_run.host.process_bytes)}{resident}."
        )
    if measurement.device.kind == "cpu" or (dry_run is not None and dry_run.target == CPU.name):
        yield "On the CPU, device and host are one memory: all tensors count as allocated."
        return
    if comparison is not None and comparison.peak_reserved is not None and comparison.peak_device is not None:
        return  # they have a table
    shown = "shown by the driver" if dry_run is None else "as the driver would show it"
    parts = [
        f"{format_bytes(size)} {name}"
        for name, size in (("reserved", measurement.peak_reserved_bytes), (shown, measurement.peak_device_bytes))
        if size is not None
    ]
    if parts:
        yield f"Device at most: {', '.join(parts)}."


def _kept(host: HostRecord) -> Iterator[str]:
    """What to do about memory that was freed and that malloc keeps, where it is much of what is resident."""
    kept, resident = host.heap_free_bytes or 0, host.rss_bytes
    if kept > MUCH_KEPT * resident:
        yield f"Of it malloc keeps {format_bytes(kept)} that were freed; {REMEDY} in the environment gives them back."


def _mib(*sizes: int) -> tuple[str, ...]:
    return tuple(f"{size / MIB:,.1f}" for size in sizes)


def _cells(difference: Difference, sides: Sides) -> tuple[str, str, str]:
    predicted, measured = _mib(difference.predicted_bytes, difference.measured_bytes)
    return predicted, measured, _error(difference, sides)


def _error(difference: Difference, sides: Sides) -> str:
    percent = difference.error_percent
    if percent is None:
        return "n/a"
    text = f"{percent:+.{sides.digits}f} %"
    # Minus nothing would look like a finding.
    return text if text.strip("+-0. %") else text[1:]


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"

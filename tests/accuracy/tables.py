"""The errors as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from dsplan.units import MIB
from tests.accuracy.errors import Errors
from tests.accuracy.estimators import ESTIMATORS, TABLE, Estimator
from tests.accuracy.records import Compared, phase_name
from tests.accuracy.splits import Group, groups, halves
from tests.accuracy.targets import Row, host_values
from tests.dry_comparison import Held, Value

HEADER = "number | mean | median | median of the absolute | worst | under-estimated"
_RULE = "|---|---|---|---|---|---|---|"
NONE_YET = "none yet"
#: Stages for which DeepSpeed has an estimator of its own.
DEEPSPEED_HAS = (2, 3)


def paragraph(text: str) -> list[str]:
    """Its lines, and an empty one."""
    words = " ".join(text.split())
    return [*textwrap.wrap(words, 118, break_long_words=False, break_on_hyphens=False), ""]


def percent(number: float, digits: int = 2) -> str:
    """Signed, unless it is nothing at this many digits."""
    text = f"{number:+.{digits}f}"
    return f"{text[1:] if float(text) == 0 else text} %"


def cells(errors: Errors | None) -> str:
    """The columns of :data:`HEADER`."""
    if errors is None:
        return f"{NONE_YET} | | | | | "
    return (
        f"{len(errors.values)} | {percent(errors.mean_percent)} | {percent(errors.median_percent)} "
        f"| {errors.median_absolute_percent:.2f} % | {percent(errors.worst.percent)} | {100 * errors.share_under:.0f} %"
    )


def head_to_head(records: Sequence[Compared]) -> list[str]:
    """Every estimator on the same records: the peak, the states alone, and the host's memory."""
    own = [found for found in records if found.plan.zero.stage in DEEPSPEED_HAS]
    offloading = {value.record for value in host_values(records)}
    offloaded = [found for found in records if found.name in offloading]
    return [
        *_side_by_side("peak allocated", lambda each: map(each.peak, records)),
        "",
        *_side_by_side("peak allocated, stages 2 and 3 only", lambda each: map(each.peak, own)),
        "",
        *_side_by_side("states alone", lambda each: map(each.states, records)),
        "",
        *_side_by_side("host memory of the node, with offload", lambda each: map(each.host, offloaded)),
    ]


def _side_by_side(title: str, values_of: Callable[[Estimator], Iterable[Value | None]]) -> list[str]:
    lines = [f"| {title} | {HEADER} |", _RULE]
    for estimator in ESTIMATORS:
        errors = Errors.of(value for value in values_of(estimator) if value is not None)
        lines.append(f"| {estimator.title} | {cells(errors) if errors else 'says nothing | | | | | '} |")
    return lines


def by_group(estimator: Estimator, records: Sequence[Compared]) -> list[str]:
    """The splits of one estimator."""
    lines = [f"| records | {HEADER} |", _RULE]
    for group in groups(records):
        lines.append(f"| {group.name} | {cells(_errors(estimator, group))} |")
    return lines


def _errors(estimator: Estimator, group: Group) -> Errors | None:
    return Errors.of(map(estimator.peak, group.records))


def by_phase(records: Sequence[Compared]) -> list[str]:
    """Peak of every phase, first of the seen half and then of the unseen one."""
    lines: list[str] = []
    for half, found in halves(records).items():
        if found:
            lines += ["", f"| {half} half: step and phase | {HEADER} |", _RULE]
            lines += [f"| {name} | {cells(Errors.of(values))} |" for name, values in phases(found).items()]
    return lines[1:]


def phases(records: Iterable[Compared]) -> Mapping[str, list[Value]]:
    """Name of a phase -> its peaks, in order of time; ``all phases`` last."""
    steps: dict[str, dict[str, list[Value]]] = {}
    for found in records:
        for step, phase, value in found.phase_peaks:
            steps.setdefault(step, {}).setdefault(phase, []).append(value)
    # Only stage 3 has a second step of its own, which another record may be first to name.
    order = sorted(steps, key=("init", "first step", "step 2", "step 3", "steady state").index)
    named = {phase_name(step, phase): values for step in order for phase, values in steps[step].items()}
    return {**named, "all phases": [value for values in named.values() for value in values]}


def targets(rows: Iterable[Row]) -> list[str]:
    """What was asked for, what was found, and whether it is reached."""
    lines = [
        "| on | number | median of the absolute | worst | most under-estimated |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.errors is None or row.verdicts is None:
            lines.append(f"| {row.title} | {NONE_YET} | | | |")
            continue
        limits = (
            f"{row.target.median_percent:g} %",
            _limit(row.target.worst_percent, row.target.worst_bytes),
            _limit(row.target.under_percent, row.target.under_bytes),
        )
        found = (
            f"{row.errors.median_absolute_percent:.2f} %",
            percent(row.errors.worst.percent),
            percent(min(0.0, row.errors.lowest.percent)),
        )
        judged = " | ".join(
            f"{number} (at most {limit}: {'met' if is_met else '**not met**'})"
            for number, limit, is_met in zip(found, limits, row.verdicts, strict=True)
        )
        lines.append(f"| {row.title} | {len(row.errors.values)} | {judged} |")
    return lines


def _limit(percents: float, size_bytes: int) -> str:
    return f"{percents:g} %" if size_bytes == 0 else f"{percents:g} % or {size_bytes // MIB} MiB"


def beyond(rows: Iterable[Row], dry: Mapping[str, Held]) -> list[str]:
    """Every value that breaks a limit, with its size and with what the dry run says of the same run."""
    lines = []
    for row in rows:
        if row.errors is None:
            continue
        lines.append(f"- **{row.title}**:{'' if row.beyond else ' none'}")
        for value in row.beyond:
            where = f"{value.record}, {value.what}" if value.what else value.record
            size = f"{percent(value.percent)}, {value.difference.error_bytes / MIB:+,.0f} MiB"
            lines.append(f"  - {where}: {size}{_of_the_dry_run(row, value, dry)}")
    return lines


def _of_the_dry_run(row: Row, value: Value, dry: Mapping[str, Held]) -> str:
    """The dry run's own error, which replays the allocator: what of the formulas' is theirs."""
    held = dry.get(value.record)
    if held is None or not row.title.startswith("H200"):
        return ""
    difference = held.host if "host" in row.title else held.allocated.peak_allocated
    assert difference.error_percent is not None
    return f" (the dry run: {percent(difference.error_percent)}{' of one rank' if 'host' in row.title else ''})"


def every_record(records: Iterable[Compared]) -> list[str]:
    """A line for each."""
    lines = [
        "| record | ranks | measured | predicted | error | init | pinned | not replayed | DeepSpeed's "
        "| 2Ψ + 2Ψ + KΨ | reserved / allocated | above reserved |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in records:
        peak, pinned = found.comparison.peak_allocated, found.comparison.host_pinned
        pinned_error = None if pinned is None or pinned.predicted_bytes == 0 else pinned.error_percent
        others = " | ".join(percent(each.peak(found).percent, 2 if each is TABLE else 0) for each in ESTIMATORS[1:])
        lines.append(
            f"| {found.name}{'' if found.half == 'seen' else ' (unseen)'} | {found.world_size} "
            f"| {peak.measured_bytes / MIB:,.1f} | {peak.predicted_bytes / MIB:,.1f} "
            f"| {percent(found.peak.percent)} | {_percent_of(found.comparison.init_peak.error_percent)} "
            f"| {_percent_of(pinned_error)} | {others} "
            f"| {found.fragmentation:.2f} | {found.overhead_bytes / MIB:,.0f} MiB |"
        )
    return lines


def _percent_of(number: float | None) -> str:
    return "" if number is None else percent(number)

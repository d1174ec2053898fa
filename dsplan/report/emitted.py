"""What was written, and how to train with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsplan import __version__
from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.formats.target import Emission
from dsplan.dsconfig.improve import Improvement
from dsplan.dsconfig.read import DsConfig
from dsplan.dsconfig.reasons import Reason
from dsplan.dsconfig.versions import VersionChange
from dsplan.estimate import DOES_NOT_FIT, TIGHT, Estimate, PlanEstimate
from dsplan.report.console import print_document, stdout_console
from dsplan.report.document import SCHEMA_VERSION
from dsplan.report.header import filled_lines, workload_line
from dsplan.report.improvement import improvement_document, print_improvement
from dsplan.report.reasons import print_reasons, reasons_document
from dsplan.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A plan in one format, and its estimate.

    Attributes:
        written: whether its files were written; False when only the launch lines were asked for.
        recommended: whether dsplan chose the strategy; False when it was named.
        checked_by_deepspeed: whether DeepSpeed's own parser took it; False when it is not installed.
        deepspeed_version: the release that it is written for; None: the newest that is known.
        version_changes: what that release needs said differently.
        improvement: what was improved of a file; None without one.
        read: that file, with what it was completed with.
        reasons: of every value; None when nobody asked.
    """

    emission: Emission
    written: bool
    estimate: Estimate
    row: PlanEstimate
    recommended: bool
    checked_by_deepspeed: bool
    deepspeed_version: str | None = None
    version_changes: tuple[VersionChange, ...] = ()
    improvement: Improvement | None = None
    read: DsConfig | None = None
    reasons: tuple[Reason, ...] | None = None


def show_emitted(emitted: Emitted, *, as_json: bool) -> None:
    """Print everything: as one JSON document, or as text, what was improved first and the reasons last."""
    if as_json:
        print_document(emitted_document(emitted))
        return
    console = stdout_console()
    for line in filled_lines(emitted.read) if emitted.read is not None else ():
        console.print(line)
    if emitted.improvement is not None:
        print_improvement(console, emitted.improvement)
    print_emitted(emitted)
    if emitted.reasons is not None:
        print_reasons(console, emitted.reasons)


def emitted_document(emitted: Emitted) -> dict[str, Any]:
    """A document valid under ``schemas/emit_config.schema.json``."""
    emission = emitted.emission
    return {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "format": emission.format,
        "path": str(emission.config_path),
        "strategy": emitted.row.plan.name,
        "recommended": emitted.recommended,
        "verdict": emitted.row.verdict,
        "reason": emitted.estimate.recommendation_reason if emitted.recommended else emitted.row.reason,
        "checked_by_deepspeed": emitted.checked_by_deepspeed,
        "config": dict(emission.config),
        "written": emitted.written,
        "files": [{"path": str(file.path), "content": file.content} for file in emission.files],
        "launch_command": next(iter(emission.launch.values())),
        "launch": dict(emission.launch),
        "notes": list(emission.notes),
        "deepspeed_version": emitted.deepspeed_version or DEEPSPEED_VERSION,
        "version_changes": [asdict(change) for change in emitted.version_changes],
        **({} if emitted.improvement is None else {"improvement": improvement_document(emitted.improvement)}),
        **({} if emitted.reasons is None else {"reasons": reasons_document(emitted.reasons)}),
    }


def print_emitted(emitted: Emitted) -> None:
    """Print what was written, its peak, what its reader has to know and the launch lines.

    Launch forms that were not written are printed in full.
    """
    console = stdout_console()
    row, emission = emitted.row, emitted.emission
    checked = "the schema and DeepSpeed's own parser" if emitted.checked_by_deepspeed else "the schema"
    if emitted.written:
        console.print(f"Wrote {_names(emission)}: {row.plan.name}, checked against {checked}.", style="bold")
    else:
        console.print(f"{row.plan.name}, checked against {checked}; -o writes the files.", style="bold")
    console.print(workload_line(row.plan.workload, emitted.estimate.cluster))
    if emitted.recommended:
        console.print(f"Recommended: {emitted.estimate.recommendation_reason}")
    if row.verdict == DOES_NOT_FIT:
        console.print(f"It does not fit: {row.reason}", style="bold red")
    elif row.verdict == TIGHT:
        console.print(f"It is tight: {row.reason}")
    device = row.device
    console.print(
        f"Predicted: GPU peak {format_bytes(device.peak_bytes)} allocated, at least "
        f"{format_bytes(device.device_bytes)} on the device; CPU {format_bytes(row.host.bytes_per_node)} per node with "
        "its ranks' processes."
    )
    for note in emission.notes:
        console.print(note)
    if emitted.deepspeed_version is not None:
        changes = len(emitted.version_changes)
        same = f"{changes or 'no'} {'difference' if changes == 1 else 'differences'}"
        console.print(f"For DeepSpeed {emitted.deepspeed_version}: {same} from {DEEPSPEED_VERSION}.")
    for change in emitted.version_changes:
        console.print(f"  {change.key} ({change.action}): {change.reason}")
    # Lines to be copied are never broken.
    console.print("\nLaunch:")
    for name, line in emission.launch.items():
        console.print(f"  {line}" if len(emission.launch) == 1 else f"  {name}: {line}", soft_wrap=True)
    if not emitted.written:
        console.print()
        console.print(emission.main.rstrip("\n"), soft_wrap=True)


def _names(emission: Emission) -> str:
    *names, last = (str(file.path) for file in emission.files)
    return f"{', '.join(names)} and {last}" if names else last

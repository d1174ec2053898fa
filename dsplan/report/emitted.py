"""What was written, and how to train with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan import __version__
from dsplan.dsconfig.launch import integrations, launch_command
from dsplan.estimate import DOES_NOT_FIT, Estimate, PlanEstimate
from dsplan.report.console import stdout_console
from dsplan.report.document import SCHEMA_VERSION
from dsplan.units import format_bytes

_CHECKPOINTING = {
    "torch": "The plan counts on torch.utils.checkpoint around every block; no DeepSpeed key turns it on.",
    "deepspeed": "The plan counts on deepspeed.checkpointing.checkpoint around every block.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A configuration that was written, and the estimate of its plan.

    Attributes:
        recommended: whether dsplan chose the strategy; False when it was named.
        checked_by_deepspeed: whether DeepSpeed's own parser took it; False when it is not installed.
    """

    path: Path
    document: Mapping[str, Any]
    estimate: Estimate
    row: PlanEstimate
    recommended: bool
    checked_by_deepspeed: bool


def emitted_document(emitted: Emitted) -> dict[str, Any]:
    """A document valid under ``schemas/emit_config.schema.json``."""
    cluster, path = emitted.estimate.cluster, str(emitted.path)
    return {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "path": path,
        "strategy": emitted.row.plan.name,
        "recommended": emitted.recommended,
        "verdict": emitted.row.verdict,
        "reason": emitted.estimate.recommendation_reason if emitted.recommended else emitted.row.reason,
        "checked_by_deepspeed": emitted.checked_by_deepspeed,
        "config": dict(emitted.document),
        "launch_command": launch_command(cluster, config_path=path),
        "integrations": dict(integrations(emitted.document, cluster, config_path=path)),
    }


def print_emitted(emitted: Emitted) -> None:
    """Print what was written, its peak, the launch command and the frameworks' lines."""
    console = stdout_console()
    row, cluster, path = emitted.row, emitted.estimate.cluster, str(emitted.path)
    checked = "the schema and DeepSpeed's own parser" if emitted.checked_by_deepspeed else "the schema"
    console.print(f"Wrote {path}: {row.plan.name}, checked against {checked}.", style="bold")
    if emitted.recommended:
        console.print(f"Recommended: {emitted.estimate.recommendation_reason}")
    if row.verdict == DOES_NOT_FIT:
        console.print(f"It does not fit: {row.reason}", style="bold red")
    console.print(
        f"Predicted: GPU peak {format_bytes(row.device.peak_bytes)} allocated, "
        f"{format_bytes(row.device.device_bytes)} on the device; CPU {format_bytes(row.host.bytes_per_node)} per node."
    )
    note = _CHECKPOINTING.get(row.plan.workload.activation_checkpointing)
    if note:
        console.print(note)
    # Lines to be copied are never broken.
    console.print("\nLaunch:")
    console.print(f"  {launch_command(cluster, config_path=path)}", soft_wrap=True)
    for name, snippet in integrations(emitted.document, cluster, config_path=path):
        console.print(f"\n{name}:")
        console.print(f"  {snippet}", soft_wrap=True)

"""What timed configurations came to, beside what was predicted: as a table, and as a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsplan import __version__
from dsplan.records import require_valid
from dsplan.report.console import print_table
from dsplan.search.result import SearchResult
from dsplan.search.trials import Tried, reached
from dsplan.units import GIB

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1


def trials_document(result: SearchResult, found: Sequence[Tried]) -> dict[str, Any]:
    """All of it, valid under ``schemas/trials.schema.json``."""
    share = reached(found)
    document = {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "model": result.model.to_config(),
        "world_size": result.cluster.world_size,
        "profile": result.profile,
        "device": next((one.outcome.device for one in found if one.outcome.device), ""),
        "versions": next((dict(one.outcome.versions) for one in found if one.outcome.versions), {}),
        "trials": [_row(one) for one in found],
        "reached": share,
        "regret": None if share is None else 1 - share,
    }
    require_valid("trials", document, "the trials are not valid, please report this")
    return document


def _row(one: Tried) -> dict[str, Any]:
    workload, time, outcome = one.trial.plan.workload, one.trial.time, one.outcome
    return {
        "strategy": one.trial.plan.name,
        "role": one.trial.role,
        "micro_batch_size": workload.micro_batch_size,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "predicted": {
            "seconds": time.seconds,
            "tokens_per_s": time.tokens_per_s,
            "peak_allocated_bytes": one.trial.peak_bytes,
        },
        "measured": None
        if outcome.seconds is None
        else {
            "seconds": outcome.seconds,
            "tokens_per_s": one.tokens_per_s,
            "peak_allocated_bytes": outcome.peak_allocated_bytes,
            "peak_reserved_bytes": outcome.peak_reserved_bytes,
        },
        "failure": None
        if outcome.seconds is not None
        else {"exit_code": outcome.exit_code, "message": outcome.message},
    }


def print_trials(console: Console, result: SearchResult, found: Sequence[Tried]) -> None:
    """The table, and the regret."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\n  strategy", no_wrap=True)
    table.add_column("\nrole", no_wrap=True)
    for head in ("micro\nbatch", "tokens/s\npredicted", "\nmeasured", "\nerror", "peak GiB\npredicted", "\nmeasured"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in found:
        peak = one.outcome.peak_allocated_bytes
        table.add_row(
            ("* " if one is found[0] else "  ") + one.trial.plan.name,
            one.trial.role,
            str(one.trial.plan.workload.micro_batch_size),
            f"{one.trial.time.tokens_per_s:,.0f}",
            "failed" if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}",
            "" if one.time_error is None else f"{100 * (1 / (1 + one.time_error) - 1):+.1f} %",
            f"{one.trial.peak_bytes / GIB:.2f}",
            "" if peak is None else f"{peak / GIB:.2f}",
        )
    print_table(console, table)
    for one in found:
        if one.outcome.message:
            console.print(f"  {one.trial.plan.name}: {one.outcome.message}", markup=False)
    share = reached(found)
    if share is None:
        console.print("\nThe recommended configuration did not run.", style="bold")
    else:
        console.print(
            f"\nThe recommended configuration reaches {100 * share:.1f} % of the best that was measured: a regret of "
            f"{100 * (1 - share):.1f} %.",
            style="bold",
        )
    console.print(f"Predicted by the profile {result.profile}.", markup=False)

"""Why each value of a written configuration is what it is, and what it costs: as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dsplan import estimate as estimator
from dsplan.dsconfig.reasons import Reason, reasons
from dsplan.estimate import PlanEstimate
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.ledger import DEVICE, PHASES
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.report.console import print_table
from dsplan.report.table import WIDE
from dsplan.units import format_bytes
from dsplan.walk import STEADY_STATE, walk

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def reasons_of(plan: Plan, model: ModelShape, cluster: Cluster, document: Mapping[str, Any]) -> tuple[Reason, ...]:
    """The reasons of ``document``, which is ``plan`` for ``model`` on ``cluster``: a dozen walks, ms each."""

    def estimate_row(other: Plan) -> PlanEstimate:
        # Terms are followed one by one only where they are looked at.
        row = estimator.estimate(model, (other,), cluster, explain=other == plan, ladder=False).plans[0]
        return _with_host_terms(row, model, cluster) if other == plan else row

    return reasons(plan, model, cluster, document, estimate_row)


def _with_host_terms(row: PlanEstimate, model: ModelShape, cluster: Cluster) -> PlanEstimate:
    """``row`` with the host's terms of the steady state: at an earlier peak of the device some are not there yet."""
    if row.device.peak_step == STEADY_STATE:
        return row
    phase = max(PHASES[1:], key=lambda name: row.device.phases[name].peak_bytes)
    target = (STEADY_STATE, phase, row.device.phases[phase].peak_bytes)
    steady = walk(model, row.plan, cluster.world_size, kernels_of(cluster.accelerator), target=target).terms
    on_device = [term for term in row.terms if term.place == DEVICE]
    return replace(row, terms=(*on_device, *(term for term in steady if term.place != DEVICE)))


def reasons_document(found: Sequence[Reason]) -> list[dict[str, Any]]:
    """One object a value: key, value, why, device_bytes, host_bytes (null: no memory), source."""
    return [asdict(reason) for reason in found]


def print_reasons(console: Console, found: Sequence[Reason]) -> None:
    """Print one row a value, or two lines where columns would not fit; ``-`` where it has nothing to do with memory."""
    console.print("Why each value is what it is, and what it adds to or takes off the peak:", style="bold")
    if console.width >= WIDE:
        print_table(console, reasons_table(found))
        return
    for reason in found:
        costs = f"GPU peak {_cost(reason.device_bytes)}, CPU {_cost(reason.host_bytes)}"
        known = reason.device_bytes is not None or reason.host_bytes is not None
        console.print(f"{reason.key} = {_show(reason.value)}" + (f": {costs}" if known else ""))
        console.print(f"  {reason.why}", style="dim")


def reasons_table(found: Sequence[Reason]) -> Table:
    """The table alone, with sources."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("value", overflow="fold")
    for heading in ("GPU peak", "CPU a node"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why (source)", overflow="fold")
    for reason in found:
        value = f"{reason.key} = {_show(reason.value)}"
        costs = (_cost(reason.device_bytes), _cost(reason.host_bytes))
        table.add_row(value, *costs, f"{reason.why} ({reason.source})")
    return table


def _cost(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    return f"{'+' if size_bytes > 0 else ''}{format_bytes(size_bytes)}"


def _show(value: Any) -> str:
    import json

    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False)

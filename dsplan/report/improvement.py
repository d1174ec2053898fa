"""What was improved of a configuration, and what memory it needs before and after: as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsplan import estimate as estimator
from dsplan.dsconfig.emit import NVME_PATH
from dsplan.dsconfig.improve import Change, Improvement, Reader, improve
from dsplan.dsconfig.measured import Row
from dsplan.estimate import PlanEstimate
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.report.console import print_table
from dsplan.report.table import WIDE
from dsplan.strategies import standard_plans
from dsplan.units import format_bytes
from dsplan.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: From here on a number of elements is read more easily with its digits in groups, also when it is written 5e8.
_LARGE = 10_000


def improvement_of(
    path: Path, model: ModelShape, cluster: Cluster, read: Reader, *, nvme_path: str | None = None
) -> Improvement:
    """The file at ``path`` improved, by the formulas and the strategies of ``dsplan estimate``.

    ``read`` reads a document as the file is read, with the options of the command line.
    """

    def estimate_row(plan: Plan) -> PlanEstimate:
        return estimator.estimate(model, (plan,), cluster, ladder=False).plans[0]

    def strategies(workload: Workload) -> tuple[Plan, ...]:
        return standard_plans(model, workload)

    return improve(
        path,
        model,
        cluster,
        read=read,
        estimate_row=estimate_row,
        strategies=strategies,
        nvme_path=nvme_path or NVME_PATH,
    )


def improvement_document(improvement: Improvement) -> dict[str, Any]:
    """The changes, and memory before and after; bytes."""
    return {
        "path": str(improvement.path),
        "strategy": improvement.strategy,
        "changes": [asdict(change) for change in improvement.changes],
        "before": _memory(improvement.before),
        "after": _memory(improvement.after),
        "notes": list(improvement.notes),
        "config": dict(improvement.document),
    }


def print_improvement(console: Console, improvement: Improvement) -> None:
    """Print what is changed and why, and the memory before and after."""
    wide, count = console.width >= WIDE, len(improvement.changes)
    if count:
        console.print(f"{improvement.path}: {count} {'change' if count == 1 else 'changes'}.", style="bold")
    else:
        console.print(f"{improvement.path}: nothing to improve.", style="bold")
    if count and wide:
        print_table(console, changes_table(improvement.changes))
    for change in () if wide else improvement.changes:
        known = change.device_before is not None
        costs = f" (GPU peak {_device(change)}, CPU {_host(change)})" if known else ""
        console.print(f"{change.key}: {_values(change)}{costs}")
        console.print(f"  {change.why}", style="dim")
    console.print()
    print_table(console, memory_table(improvement, wide=wide))
    for note in improvement.notes:
        console.print(f"Note: {note}")


def changes_table(changes: Sequence[Change]) -> Table:
    """One row a key that is changed."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("key", overflow="fold")
    table.add_column("before -> after", overflow="fold")
    for heading in ("GPU peak", "CPU a node"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why")
    for change in changes:
        table.add_row(change.key, _values(change), _device(change), _host(change), change.why)
    return table


def memory_table(improvement: Improvement, *, wide: bool) -> Table:
    """GPU peak, device and host memory, and the verdict, before and after."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for heading in ("before", "after", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("")
    old, new = improvement.before, improvement.after
    for name, before, after, remark in (
        ("GPU peak, allocated", old.device.peak_bytes, new.device.peak_bytes, "on the worst rank"),
        ("GPU memory", old.device.device_bytes, new.device.device_bytes, "with context and communication"),
        ("CPU memory", old.host.bytes_per_node, new.host.bytes_per_node, "of a node"),
    ):
        cells = [name, format_bytes(before), format_bytes(after), _difference(before, after)]
        table.add_row(*cells, *([remark] if wide else []))
    table.add_row("verdict", old.verdict, new.verdict, "")
    return table


def _memory(row: Row) -> dict[str, Any]:
    return {
        "peak_bytes": row.device.peak_bytes,
        "device_bytes": row.device.device_bytes,
        "host_bytes_per_node": row.host.bytes_per_node,
        "verdict": row.verdict,
        "reason": row.reason,
    }


def _values(change: Change) -> str:
    after = "removed" if change.after is None else _show(change.after)
    return f"{_show(change.before)} -> {after}"


def _device(change: Change) -> str:
    return _difference(change.device_before, change.device_after)


def _host(change: Change) -> str:
    return _difference(change.host_before, change.host_after)


def _difference(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{'+' if after > before else ''}{format_bytes(after - before)}"


def _show(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer() and abs(value) >= _LARGE:
        value = int(value)  # 5e8
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)

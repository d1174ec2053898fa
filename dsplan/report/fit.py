"""The largest that fits: as a table and as a document (``schemas/fit.schema.json``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsplan import __version__
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.report.console import print_table
from dsplan.search.fit import Largest
from dsplan.units import GIB, format_count

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
_UNIT = {"model": "layers", "micro-batch": "samples", "sequence": "tokens"}


def print_fit(console: Console, what: str, model: ModelShape, cluster: Cluster, rows: Sequence[Largest]) -> None:
    """One row a strategy."""
    from rich.table import Table

    accelerator = cluster.accelerator
    assert accelerator is not None
    machines = f"{cluster.world_size} x {accelerator.label}"
    if cluster.num_nodes > 1:
        machines += f" on {cluster.num_nodes} nodes"
    console.print(f"The largest {what.replace('-', ' ')} that fits on {machines}, scaled from {model.name}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("\nstrategy", no_wrap=True)
    if what == "model":
        table.add_column("\nmodel", justify="right", no_wrap=True)
        table.add_column("at\nbest", justify="right", no_wrap=True)
    table.add_column(f"\n{_UNIT[what]}", justify="right", no_wrap=True)
    if what != "model":
        table.add_column("at\nbest", justify="right", no_wrap=True)
    table.add_column("GPU\nGiB", justify="right", no_wrap=True)
    table.add_column("CPU\nGiB", justify="right", no_wrap=True)
    table.add_column("\npeak, or what is short")
    for row in rows:
        weight = row.weight
        count = f"{row.value:,}" if row.value else "none"
        sizes = [count, f"{row.at_best:,}" if row.at_best else "none"]
        if what == "model":
            model_at = format_count(row.num_parameters) if row.value else "-"
            sizes = [model_at, format_count(row.at_best_parameters) if row.at_best else "-", count]
        table.add_row(
            row.strategy,
            *sizes,
            f"{weight.device_bytes / GIB:.1f}",
            f"{weight.host_bytes / GIB:.1f}",
            weight.moment if row.value else weight.why,
        )
    print_table(console, table)
    console.print("\nAt best: its tensors fit, and nothing is allowed for fragmentation. Sizes are of the first.")


def fit_document(what: str, model: ModelShape, cluster: Cluster, rows: Sequence[Largest]) -> dict[str, Any]:
    """The rows; bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "what": what,
        "model": model.name,
        "cluster": {
            "accelerator": None if cluster.accelerator is None else cluster.accelerator.name,
            "gpus_per_node": cluster.gpus_per_node,
            "num_nodes": cluster.num_nodes,
            "host_memory_bytes": cluster.host_memory_bytes,
        },
        "strategies": [
            {
                "strategy": row.strategy,
                "largest": row.value,
                "unit": _UNIT[what],
                "num_parameters": row.num_parameters if row.value else None,
                "at_best": row.at_best,
                "at_best_parameters": row.at_best_parameters if row.at_best else None,
                "device_bytes": row.weight.device_bytes,
                "host_bytes": row.weight.host_bytes,
                "moment": row.weight.moment,
                "why": row.weight.why,
            }
            for row in rows
        ],
    }

"""A sweep as CSV, as a document (``schemas/sweep.schema.json``), and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from dsplan import __version__
from dsplan.model import ModelShape
from dsplan.report.scatter import Dot, scatter
from dsplan.search.sweep import Point
from dsplan.units import GIB

SCHEMA_VERSION = 1
COLUMNS = (
    "accelerator", "gpus_per_node", "num_nodes", "strategy", "micro_batch_size", "sequence_length",
    "gradient_accumulation_steps", "fits", "device_bytes", "bound_bytes", "host_bytes", "step_seconds",
    "tokens_per_s", "model_flops_utilisation", "dominant", "why",
)  # fmt: skip


def row_of(point: Point) -> dict[str, Any]:
    """One point under :data:`COLUMNS`; bytes and seconds; None where no time is known."""
    workload, time = point.plan.workload, point.time
    assert point.cluster.accelerator is not None
    return {
        "accelerator": point.cluster.accelerator.name,
        "gpus_per_node": point.cluster.gpus_per_node,
        "num_nodes": point.cluster.num_nodes,
        "strategy": point.plan.name,
        "micro_batch_size": workload.micro_batch_size,
        "sequence_length": workload.sequence_length,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "fits": point.weight.fits,
        "device_bytes": point.weight.device_bytes,
        "bound_bytes": point.weight.bound_bytes,
        "host_bytes": point.weight.host_bytes,
        "step_seconds": None if time is None else time.seconds,
        "tokens_per_s": None if time is None else time.tokens_per_s,
        "model_flops_utilisation": None if time is None else time.model_flops_utilisation,
        "dominant": None if time is None else time.dominant,
        "why": point.weight.why,
    }


def sweep_csv(points: Sequence[Point]) -> str:
    """The points as comma-separated values with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row_of(point) for point in points)
    return text.getvalue()


def sweep_document(model: ModelShape, points: Sequence[Point]) -> dict[str, Any]:
    """The points as a document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "model": {"name": model.name, "num_parameters": model.num_parameters},
        "points": [row_of(point) for point in points],
    }


def sweep_picture(model: ModelShape, points: Sequence[Point]) -> str:
    """Memory against speed of all points that fit and whose time is known, coloured by strategy."""
    dots = [
        Dot(
            x=point.weight.device_bytes / GIB,
            y=point.time.tokens_per_s,
            group=point.plan.name,
            title=", ".join(str(row_of(point)[key]) for key in COLUMNS[:6]),
        )
        for point in points
        if point.weight.fits and point.time is not None
    ]
    return scatter(dots, title=f"{model.name}: what fits", x_label="GPU memory, GiB", y_label="tokens per second")

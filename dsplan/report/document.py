"""The estimate as a document, valid under ``schemas/estimate.schema.json``. Sizes are integers of bytes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsplan import __version__
from dsplan.dsconfig.emit import emit
from dsplan.estimate import DeviceEstimate, Estimate, PlanEstimate
from dsplan.hardware import Cluster
from dsplan.ledger import PhaseMemory
from dsplan.model import ModelShape
from dsplan.workload import Workload

if TYPE_CHECKING:
    from dsplan.dsconfig.read import DsConfig
    from dsplan.dsconfig.resolve import Filled

#: Raised when a key changes its meaning or goes; a new key does not raise it.
SCHEMA_VERSION = 1


def estimate_document(
    estimate: Estimate, *, inferred: str | None = None, ds_config: DsConfig | None = None
) -> dict[str, Any]:
    """The whole estimate; a plan has ``terms`` when it was explained, a configuration what it was completed with."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "model": _model(estimate.model, inferred),
        "workload": _workload(estimate.plans[0].plan.workload),
        "cluster": _cluster(estimate.cluster),
        "plans": [_plan(row, estimate) for row in estimate.plans],
        "recommended": estimate.recommended,
        "recommendation_reason": estimate.recommendation_reason,
    }
    if ds_config is not None:
        document["ds_config"] = {
            "path": str(ds_config.path),
            "consumer": ds_config.consumer,
            "inferred": [_filled(filled) for filled in ds_config.inferred],
            "overrides": [_filled(filled) for filled in ds_config.overrides],
        }
    return document


def _filled(filled: Filled) -> dict[str, Any]:
    return asdict(filled)


def _model(model: ModelShape, inferred: str | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "num_parameters": model.num_parameters,
        "config": model.to_config(),
        "inferred": inferred,
    }


def _workload(workload: Workload) -> dict[str, Any]:
    """What all plans share; the micro batch and checkpointing are each plan's."""
    return {
        "sequence_length": workload.sequence_length,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "precision": workload.precision,
        "optimizer": workload.optimizer,
    }


def _cluster(cluster: Cluster) -> dict[str, Any]:
    device = cluster.accelerator
    return {
        "accelerator": None
        if device is None
        else {"name": device.name, "label": device.label, "kind": device.kind, "memory_bytes": device.memory_bytes},
        "gpus_per_node": cluster.gpus_per_node,
        "num_nodes": cluster.num_nodes,
        "world_size": cluster.world_size,
        "host_memory_bytes": cluster.host_memory_bytes,
        "allocator": cluster.allocator,
    }


def _plan(row: PlanEstimate, estimate: Estimate) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": row.plan.name,
        "zero": emit(row.plan, estimate.model, estimate.cluster)["zero_optimization"],
        "micro_batch_size": row.plan.workload.micro_batch_size,
        "activation_checkpointing": row.plan.workload.activation_checkpointing,
        "device": _device(row.device),
        "host": {
            "pinned_bytes": row.host.pinned_bytes,
            "pageable_bytes": row.host.pageable_bytes,
            "bytes_per_node": row.host.bytes_per_node,
            "bound_bytes_per_node": row.host.bound_bytes_per_node,
            "kept_bytes": row.host.kept_bytes,
            "locked_bytes": row.host.locked_bytes,
            "disk": [{"folder": folder, "bytes_per_node": size} for folder, size in row.host.disk_bytes_per_node],
        },
        "verdict": row.verdict,
        "reason": row.reason,
        "judged_by": row.judged_by,
        "headroom_bytes": row.headroom_bytes,
        "headroom_percent": _percent(row),
        "allocator": _allocator(row),
        "remedies": [
            {"change": remedy.change, "saved_bytes": remedy.saved_bytes, "verdict": remedy.verdict}
            for remedy in row.remedies
        ],
        "fits_on": list(row.fits_on),
        "max_micro_batch_size": row.max_micro_batch_size,
        "max_sequence_length": row.max_sequence_length,
    }
    if row.terms:
        document["terms"] = [asdict(term) for term in row.terms]
    return document


def _percent(row: PlanEstimate) -> float | None:
    """The headroom as a share of what the device offers to torch's allocator."""
    if row.pressed is None or row.headroom_bytes is None or row.pressed.offered_bytes <= 0:
        return None
    return round(100 * row.headroom_bytes / row.pressed.offered_bytes, 2)


def _allocator(row: PlanEstimate) -> dict[str, Any] | None:
    pressed = row.pressed
    if pressed is None:
        return None
    moment = pressed.moment
    return {
        "offered_bytes": pressed.offered_bytes,
        "reserved_bytes": pressed.reserved_bytes,
        "reserved_bound_bytes": pressed.reserved_bound_bytes,
        "least_bytes": pressed.least_bytes,
        "dies_in": None if moment is None else {"step": moment.step, "phase": moment.phase, "moment": moment.moment},
    }


def _device(device: DeviceEstimate) -> dict[str, Any]:
    return {
        "phases": _phases(device.phases),
        "first_step": _phases(device.first_step),
        "peak_bytes": device.peak_bytes,
        "peak_phase": device.peak_phase,
        "peak_step": device.peak_step,
        "peak_moment": device.peak_moment,
        "steps_peak_bytes": device.steps_peak_bytes,
        "overhead_bytes": device.overhead_bytes,
        "device_bytes": device.device_bytes,
        "device_bound_bytes": device.device_bound_bytes,
    }


def _phases(phases: dict[str, PhaseMemory]) -> dict[str, Any]:
    return {name: {"level_bytes": phase.level_bytes, "peak_bytes": phase.peak_bytes} for name, phase in phases.items()}

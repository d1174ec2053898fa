"""The lines above a table: the model, the workload and the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.units import format_bytes
from dsplan.workload import Workload

if TYPE_CHECKING:
    from dsplan.dsconfig.read import DsConfig


def header_lines(model: ModelShape, workload: Workload, cluster: Cluster, inferred: str | None) -> list[str]:
    """What is planned: model (with what was inferred), workload, machine."""
    return [_model(model, inferred), workload_line(workload, cluster), _machine(cluster)]


def filled_lines(config: DsConfig) -> list[str]:
    """What the file was completed with before it was planned: by the framework that reads it, or by flags."""
    sources: dict[str, list[str]] = {}
    for filled in (*config.inferred, *config.overrides):
        sources.setdefault(filled.source, []).append(f"  {filled.change}")
    return [line for source, lines in sources.items() for line in (f"{config.path.name}, completed {source}:", *lines)]


def _model(model: ModelShape, inferred: str | None) -> str:
    head = "tied" if model.tie_word_embeddings else "untied"
    kind = f"{model.attention} attention, {model.activation}, dropout {model.dropout:g}, {head} head"
    if inferred is not None:
        return f"Model: {inferred}\nWith {kind}."
    return (
        f"Model: {model.name}: {model.num_parameters:,} parameters; {model.num_layers} layers, "
        f"width {model.hidden_size}, {model.num_attention_heads} heads, vocabulary {model.vocab_size}, "
        f"block {model.max_position_embeddings}; {kind}."
    )


def workload_line(workload: Workload, cluster: Cluster) -> str:
    """Precision, optimizer, sequence and batch, in one sentence."""
    steps = workload.gradient_accumulation_steps
    samples = workload.micro_batch_size * cluster.world_size * steps
    return (
        f"Workload: {workload.precision}, {workload.optimizer}, {workload.sequence_length} tokens a sample; "
        f"micro batch {workload.micro_batch_size} x {_count(cluster.world_size, 'GPU')} x "
        f"{_count(steps, 'accumulation step')} = {_count(samples, 'sample')} a step."
    )


def _machine(cluster: Cluster) -> str:
    device = cluster.accelerator
    if device is None:
        name = "GPU of unknown kind (none here, and no --gpu)"
    elif device.memory_bytes is None:
        name = device.label
    else:
        name = f"{device.label} of {format_bytes(device.memory_bytes)}"
    host = cluster.host_memory_bytes
    memory = "unknown (--host-memory)" if host is None else f"{format_bytes(host)} per node"
    allocator = f" PYTORCH_CUDA_ALLOC_CONF={cluster.allocator}." if cluster.allocator else ""
    nodes = _count(cluster.num_nodes, "node")
    return f"Machine: {nodes} with {cluster.gpus_per_node} x {name}; CPU memory {memory}.{allocator}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

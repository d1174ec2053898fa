"""The letters of the formulas, with their numbers for one plan."""

from __future__ import annotations

from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.partition import padded_elements
from dsplan.plan import Plan
from dsplan.units import ceil_div


def legend(model: ModelShape, plan: Plan, cluster: Cluster) -> dict[str, int]:
    """Letter -> number, in the order of reading: model, batch, ranks, partition (see dsplan.states, dsplan.buffers)."""
    workload, ranks = plan.workload, cluster.world_size
    letters = {
        "Ψ": model.num_parameters,
        "L": model.num_layers,
        "h": model.hidden_size,
        "a": model.num_attention_heads,
        "d": model.head_width,
        "V": model.vocab_size,
        "T": model.max_position_embeddings,
        "b": workload.micro_batch_size,
        "s": workload.sequence_length,
        "e": workload.element_bytes,
        "N": ranks,
    }
    if plan.zero.stage in (1, 2):
        padded = padded_elements(model, ranks)
        letters |= {"Ψp": padded, "P": padded // ranks}
    elif plan.zero.stage == 3:
        letters["P"] = sum(ceil_div(parameter.numel, ranks) for parameter in model.parameters)
    if plan.zero.stage:
        letters["R"] = plan.zero.reduce_bucket_size
    return letters

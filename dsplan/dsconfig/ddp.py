"""What a verification run of torch's DistributedDataParallel is told, in place of a DeepSpeed configuration.

It is kept in the record where a DeepSpeed configuration is, so that the record says what was run. The keys that it
shares with DeepSpeed mean the same; ``engine`` is no key of DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsplan.errors import InputError
from dsplan.plan import Plan
from dsplan.workload import Workload

ENGINE = "engine"
DISTRIBUTED_DATA_PARALLEL = "torch.nn.parallel.DistributedDataParallel"
_SHARED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "optimizer",
    "gradient_clipping",
)


def is_ddp(document: Mapping[str, Any]) -> bool:
    """Whether a run's configuration is DDP's, and not DeepSpeed's."""
    return document.get(ENGINE) == DISTRIBUTED_DATA_PARALLEL


def ddp_document(plan: Plan, emitted: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of ``plan`` is told: of the configuration that would be emitted what torch has too.

    Raises:
        InputError: the plan checkpoints with DeepSpeed's function, which wants its configuration.
    """
    if plan.workload.activation_checkpointing == "deepspeed":
        raise InputError(
            f"{plan.name}: activation_checkpointing deepspeed is DeepSpeed's own; with ddp use torch, or none"
        )
    return {ENGINE: DISTRIBUTED_DATA_PARALLEL, **{key: emitted[key] for key in _SHARED if key in emitted}}


def ddp_plan(document: Mapping[str, Any], workload: Workload, name: str) -> Plan:
    """The plan that :func:`ddp_document` was written of."""
    return Plan(name=name, ddp=True, workload=workload, gradient_clipping=float(document["gradient_clipping"]))

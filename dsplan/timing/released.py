"""Which parameters stage 3 releases after the forward pass, and gathers again for the backward pass.

What is used again within ``stage3_max_reuse_distance`` elements of the modules that follow stays (DeepSpeed
runtime/zero/partitioned_param_coordinator.py, ``__params_to_release``): the last blocks, and of a small model all.
"""

from __future__ import annotations

from dsplan.model import ModelShape
from dsplan.plan import Plan

_STAGE = 3


def released_share(model: ModelShape, plan: Plan) -> float:
    """The share of the blocks, 0 to 1, that stage 3 releases between the passes; 0 at the other stages.

    Between a block's forward and its backward pass come both passes of all later blocks, with checkpointing also their
    recomputation, and of the head.
    """
    if plan.zero.stage != _STAGE:
        return 0.0
    block = sum(parameter.numel for parameter in model.block_parameters)
    head = sum(parameter.numel for parameter in model.head_parameters)
    visits = 2 if plan.workload.activation_checkpointing == "none" else 3
    left = plan.zero.stage3_max_reuse_distance - 2 * head
    kept = max(0, -(-left // (visits * block)))  # those with fewer elements in between
    return max(0, model.num_layers - kept) / model.num_layers

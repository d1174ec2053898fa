"""Bucket sizes that fit the model, in place of DeepSpeed's fixed defaults.

DeepSpeed allocates a bucket in full however small the model is (``runtime/zero/stage_1_and_2.py``,
``setup_buckets``; ``runtime/zero/stage3.py``, ``_setup_for_real_optimizer``): the default of 5e8
elements costs 1 GB in bf16, 2 GB with ``overlap_comm``.

Legend: Ψ parameters of the model, h hidden size, N data-parallel ranks.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from dsplan.model import ModelShape
from dsplan.units import ceil_div
from dsplan.zero import ZeroConfig

#: 16.8M elements: 32 MiB in 16 bits, above torch DDP's 25 MB; smaller collectives waste bandwidth on latency.
SMALLEST_REDUCE_BUCKET = 2**24
#: DeepSpeed's default, above which larger collectives gain nothing.
LARGEST_BUCKET = 500_000_000
#: ``runtime/zero/stage_1_and_2.py`` (``nccl_start_alignment_factor``), which an all-gather bucket is a multiple of.
ALLGATHER_ALIGNMENT = 2
#: Elements of one tile of the stage-3 update.
SUB_GROUP_SIZE = 100_000_000


def tuned(zero: ZeroConfig, model: ModelShape, *, world_size: int = 1) -> ZeroConfig:
    """``zero`` with the bucket sizes that dsplan emits for ``model``.

    Only values that are still DeepSpeed's defaults are replaced; what was chosen stays.

    - ``reduce_bucket_size`` (stages 1 to 3): the largest matrix of a block, so that no gradient of
      a block goes around the bucket; at least 2^24, at most 5e8, never more than Ψ. Embeddings may
      be larger: DeepSpeed reduces a gradient above the bucket in place, which needs no copy.
    - ``allgather_bucket_size`` (stages 1 and 2): 5e8, never more than Ψ, and even, or DeepSpeed stops
      (``stage_1_and_2.py``, ``__init__``). Parameters are gathered in place, so a larger bucket costs nothing.
    - ``stage3_prefetch_bucket_size``: 0.9 h², never more than Ψ, and
      ``stage3_param_persistence_threshold``: 10 h, which keeps norms and biases in place: the rule
      of Hugging Face's integration (transformers ``integrations/deepspeed.py``,
      ``trainer_config_finalize``).
    - ``sub_group_size`` (stage 3): 1e8. The update copies one tile at a time; DeepSpeed's 1e9 costs
      up to 6 GB of temporaries in mixed precision, and the smaller tile still fills the device.
    - ``offload_param.buffer_size`` (to NVMe): the largest partition, ceil(largest parameter / N).
      DeepSpeed stops when a partition does not fit (``runtime/swap_tensor/partitioned_param_swapper.py``,
      ``get_buffer``) and pins buffer_count of them however little is needed.

    ``stage3_max_live_parameters`` and ``stage3_max_reuse_distance`` keep DeepSpeed's 1e9: they trade
    memory for communication, which is a choice of strategy and not of size.

    Args:
        zero: stage 0 is returned unchanged: its buckets are fixed in DeepSpeed's engine.
        model: the shape that the sizes are for.
        world_size: N; 1 is safe for every N.
    """
    if zero.stage == 0:
        return zero
    h, psi = model.hidden_size, model.num_parameters
    largest_matrix = max(parameter.numel for parameter in model.block_parameters)
    chosen: dict[str, Any] = {
        "reduce_bucket_size": min(psi, LARGEST_BUCKET, max(SMALLEST_REDUCE_BUCKET, largest_matrix)),
    }
    if zero.stage < 3:
        aligned = min(psi, LARGEST_BUCKET) // ALLGATHER_ALIGNMENT * ALLGATHER_ALIGNMENT
        chosen["allgather_bucket_size"] = max(ALLGATHER_ALIGNMENT, aligned)
    else:
        chosen["stage3_prefetch_bucket_size"] = min(psi, 9 * h * h // 10)
        chosen["stage3_param_persistence_threshold"] = 10 * h
        chosen["sub_group_size"] = SUB_GROUP_SIZE
    default = ZeroConfig()
    result = replace(
        zero, **{key: value for key, value in chosen.items() if getattr(zero, key) == getattr(default, key)}
    )
    if zero.offload_param.device == "nvme" and zero.offload_param.buffer_size == default.offload_param.buffer_size:
        largest = max(parameter.numel for parameter in model.parameters)
        buffer_size = ceil_div(largest, world_size)
        result = replace(result, offload_param=replace(zero.offload_param, buffer_size=buffer_size))
    return result


def with_nvme_path(zero: ZeroConfig, nvme_path: str) -> ZeroConfig:
    """``zero`` with ``nvme_path`` wherever a section offloads to NVMe and names no folder."""
    result = zero
    for name in (field.name for field in fields(ZeroConfig) if field.name.startswith("offload_")):
        section = getattr(zero, name)
        if section.device == "nvme" and section.nvme_path is None:
            result = replace(result, **{name: replace(section, nvme_path=nvme_path)})
    return result

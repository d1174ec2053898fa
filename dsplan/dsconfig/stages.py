"""Which ZeRO stages read which key of ``zero_optimization``.

Source: DeepSpeed ``runtime/engine.py`` (``_configure_zero_optimizer``), which hands them to the stage's optimizer, and
``runtime/zero/partition_parameters.py`` (``Init``, which stage 3 alone uses).
"""

from __future__ import annotations

_FROM_1 = (
    "offload_optimizer",
    "reduce_bucket_size",
    "contiguous_gradients",
    "overlap_comm",
    "reduce_scatter",
    "zenflow",
)
_BELOW_3 = (
    "allgather_bucket_size",
    "round_robin_gradients",
    "use_multi_rank_bucket_allreduce",
    "parameter_alignment",
    "ignore_unused_parameters",
)
_ONLY_3 = (
    "offload_param",
    "sub_group_size",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "memory_efficient_linear",
    "leaf_module",
    "log_trace_cache_warnings",
    "enable_sanity_checks",
    "save_muon_momentum_buffer_in_memory",
    "prefetch_bucket_size",
    "param_persistence_threshold",
    "model_persistence_threshold",
    "max_live_parameters",
    "max_reuse_distance",
    "gather_16bit_weights_on_model_save",
    "module_granularity_threshold",
    "use_all_reduce_for_fetch_params",
    "allgather_sequential",
)

#: Key -> the stages that read it; a key that is not here is read by all, or by none of the optimizers.
STAGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_FROM_1, (1, 2, 3)),
    **dict.fromkeys(_BELOW_3, (1, 2)),
    **dict.fromkeys(_ONLY_3, (3,)),
}


def stages_of(key: str) -> tuple[int, ...] | None:
    """The stages that read ``key`` of ``zero_optimization``; None when that does not depend on the stage."""
    return (3,) if key.startswith("stage3_") else STAGES.get(key)

"""Keys of sections that the schema leaves open.

Source: DeepSpeed ``autotuning/config.py``, ``compile/config.py`` (CompileConfig),
``runtime/data_pipeline/constants.py``, ``runtime/tensor_parallel/config.py`` (TPTrainingConfig, TPConfig),
``runtime/zenflow/zenflow_config.py``, ``module_inject/auto_ep_config.py`` (parse_autoep_config) and
``runtime/config.py`` (get_pipeline_config).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ANY: dict[str, Any] = {}
_BOOLEAN = {"type": "boolean"}
_INTEGER = {"type": "integer"}
_STRING = {"type": "string"}
_SECTION = {"type": "object"}


def _table(**kinds: tuple[dict[str, Any], str]) -> dict[str, Any]:
    return {key: rules for rules, keys in kinds.values() for key in keys.split()}


#: Dotted section -> key -> schema.
MORE_KEYS: Mapping[str, Mapping[str, Any]] = {
    "autotuning": _table(
        booleans=(_BOOLEAN, "enabled fast overwrite"),
        integers=(
            _INTEGER,
            "start_profile_step end_profile_step tuner_early_stopping tuner_num_trials mp_size min_train_batch_size "
            "min_train_micro_batch_size_per_gpu max_train_micro_batch_size_per_gpu num_tuning_micro_batch_sizes",
        ),
        optional=({"type": ["integer", "null"]}, "max_train_batch_size"),
        strings=(_STRING, "results_dir exps_dir metric tuner_type"),
        paths=({"type": ["string", "null"]}, "metric_path model_info_path"),
        sections=({"type": ["object", "null"]}, "arg_mappings model_info"),
    ),
    "compile": _table(
        booleans=(
            _BOOLEAN,
            "deepcompile autoep_non_moe free_activation offload_activation offload_activation_pin_memory "
            "offload_opt_states double_buffer symmetric_memory debug_log offload_parameters sync_before_reduce "
            "sync_after_reduce sync_before_allgather sync_after_allgather keep_int_input_tensors "
            "keep_all_input_tensors",
        ),
        integers=(_INTEGER, "free_activation_threshold"),
        lists=({"type": ["array", "null"]}, "passes"),
    ),
    "data_efficiency": _table(
        booleans=(_BOOLEAN, "enabled"), integers=(_INTEGER, "seed"), sections=(_SECTION, "data_sampling data_routing")
    ),
    "data_efficiency.data_sampling": _table(
        booleans=(_BOOLEAN, "enabled pin_memory"),
        integers=(_INTEGER, "num_epochs num_workers"),
        sections=(_SECTION, "curriculum_learning dynamic_batching"),
    ),
    "data_efficiency.data_sampling.curriculum_learning": _table(
        booleans=(_BOOLEAN, "enabled"),
        strings=(_STRING, "data_cluster_path"),
        sections=(_SECTION, "curriculum_metrics"),
    ),
    "data_efficiency.data_sampling.dynamic_batching": _table(
        booleans=(_BOOLEAN, "enabled verbose"),
        integers=(_INTEGER, "min_batch_size max_batch_size max_tokens"),
        strings=(_STRING, "metrics_path lr_scaling_method sequence_picking_order"),
    ),
    "data_efficiency.data_routing": _table(booleans=(_BOOLEAN, "enabled"), sections=(_SECTION, "random_ltd")),
    "zero_optimization.zenflow": _table(
        ratio=({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "topk_ratio"),
        shares=({"type": "number", "minimum": 0, "maximum": 1}, "auto_ratio pt_reserved_cores_perc"),
        interval=({"type": ["integer", "string"], "minimum": 1}, "update_interval"),
        others=(_ANY, "select_interval steps_per_epoch"),
        strategy=({"enum": ["auto", "step", "epoch"]}, "select_strategy"),
        booleans=(_BOOLEAN, "overlap_step offload"),
        integers=(_INTEGER, "full_warm_up_rounds"),
    ),
    "tensor_parallel": _table(
        integers=(_INTEGER, "autotp_size"),
        booleans=(_BOOLEAN, "tp_overlap_comm keep_module_on_host replace_with_kernel_inject kernel_inject"),
        others=(
            _ANY,
            "dtype vocab_parallel_lm_head vocab_parallel_ce_backend tensor_parallel tp injection_policy_tuple "
            "partition_config preset_model",
        ),
    ),
    "expert_parallel": _table(
        booleans=(
            _BOOLEAN,
            "enabled validate_folding_routing async_split_plan use_grouped_mm disable_triton_grouped_mm",
        ),
        others=(
            _ANY,
            "autoep_size expert_tensor_parallel_size preset_model moe_layer_pattern expert_pattern router_pattern "
            "route_norm route_scale score_apply combine_impl row_weighting_impl gate_up_impl comm_backend "
            "comm_num_sm comm_qp_margin comm_max_tokens_per_rank num_expert_groups num_limited_groups score_func "
            "top_k load_balance_coeff routed_scaling_factor expert_w1 expert_w2 expert_w3 num_experts_attr "
            "top_k_attr has_shared_experts shared_experts_pattern shared_experts_gate_pattern expert_activation",
        ),
    ),
    "pipeline": _table(
        others=(
            _ANY,
            "stages partition seed_layers activation_checkpoint_interval pipe_partitioned grad_partitioned "
            "use_reentrant",
        ),
    ),
}

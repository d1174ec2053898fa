"""Buffers: the terms of buckets, copies and temporaries that DeepSpeed allocates around the states.

Legend as in dsplan.states; R ``reduce_bucket_size``, b bytes of a bucket element, n_max the largest
parameter, S_max the largest slice of a parameter that a rank owns.
"""

from __future__ import annotations

from dsplan.ledger import Term

REDUCE_BUCKET = Term(
    "reduce bucket",
    "b·R, twice with overlap_comm",
    "stage_1_and_2.py setup_buckets; stage3.py _setup_for_real_optimizer",
)
FLAT_BUCKET = Term("flat copy of a bucket for its collective", "e·bucket", "stage_1_and_2.py allreduce_bucket flatten")
ALLREDUCE_COPY = Term(
    "flat copy of gradients for all-reduce", "e·min(Ψ, 5e8+)", "engine.py buffered_allreduce_fallback"
)
SCATTER_COPY = Term(
    "interleaved copy for reduce-scatter", "e·bucket", "coalesced_collectives.py reduce_scatter_coalesced"
)
SCATTER_PADDING = Term(
    "padding of gradients for reduce-scatter",
    "c·⌈n/N⌉ for each part that n elements do not fill",
    "coalesced_collectives.py reduce_scatter_coalesced",
)
COMMUNICATION_COPY = Term(
    "gradients cast for their reduction", "c·n each", "stage3.py __avg_scatter_grads: communication_data_type"
)
SCALED_COPY = Term(
    "scaled copy of an all-reduced bucket",
    "c·bucket",
    "stage3.py __avg_scatter_contiguous_grads: mul(gradient_predivide_factor), without reduce_scatter",
)
ACCUMULATION_COPY = Term(
    "reduced gradients cast for their accumulation",
    "g·⌈n/N⌉ each",
    "stage3.py __avg_scatter_grads: gradient_accumulation_dtype",
)
NORM = Term(
    "gradient in fp64 for the norm", "8·S_max", "stage_1_and_2.py, stage3.py get_grad_norm_direct (get_norm_dtype)"
)
FLAT_GRADIENT = Term("flattened gradient partition", "e·P", "stage_1_and_2.py step: flatten(averaged_gradients)")
STEP_GRADIENT = Term(
    "fp32 gradient partition for the update", "4·P", "stage_1_and_2.py step; stage3.py _prepare_fp32_grad"
)
STEP_GRADIENT_LIST = Term(
    "fp32 gradients, one by one", "4·Ψ", "fp16/fused_optimizer.py step; unfused_optimizer.py step"
)
OPTIMIZER_TEMPORARY = Term("optimizer temporaries", "4·P each", "torch.optim foreach implementations")
FLATTEN = Term(
    "flat copy while flattening", "e·Ψ", "fused_optimizer.py clone; stage_1_and_2.py flatten_dense_tensors_aligned"
)
CAST = Term("copy while casting to fp32", "e·P, 4·P", "detach().clone().to(device, fp32)")
INIT_GRADIENT = Term("gradient buffer while initialising", "4·P", "initialize_optimizer_states")
GPU_STAGING = Term("gradient staging on the device", "e·n_max", "stage_1_and_2.py temp_grad_buffer_for_gpu_offload")
OFFLOAD_CAST = Term(
    "gradient slice in fp32 on its way to the host", "4·S", "async_inplace_copy_grad_to_fp32_buffer_from_gpu"
)
GATHERED = Term(
    "gathered parameters",
    "e·n each, up to max_live + prefetch",
    "partitioned_param_coordinator.py; partition_parameters.py",
)
PERSISTENT = Term("persistent parameters", "e·n for n ≤ stage3_param_persistence_threshold", "parameter_offload.py")
OVERFLOW = Term(
    "overflow check of the whole gradient partition", "e·P + P", "stage3.py has_overflow: isinf is abs() == inf"
)

"""States: the terms of parameters, gradients and optimizer states, on the device and on the host.

Legend: Ψ parameters, Ψp padded to a multiple of 2N, N ranks, P = Ψp/N (stages 1, 2) or Σ⌈n/N⌉
(stage 3), e bytes of a model element, ΣG elements of the parameters that touch a rank's range.
"""

from __future__ import annotations

from dsplan.ledger import PAGEABLE, PINNED, Term

ZERO = "ZeRO arXiv:1910.02054"

PARAMETERS = Term("parameters", "e·Ψ (flat: e·Ψp)", f"{ZERO} §3; engine.py _configure_distributed_model; flat buffers")
PARTITIONED_PARAMETERS = Term(
    "partitioned parameters", "e·Σ⌈n/N⌉", f"{ZERO} §5.3; partition_parameters.py _partition_param, stage3.py defragment"
)
FROZEN_PARAMETERS = Term(
    "parameters that are not trained",
    "e·n each",
    "engine.py _configure_distributed_model: cast and moved with the rest",
)
BUFFERS = Term(
    "causal mask buffers", "4·L·T² (stage 3: e·L·T²)", "minGPT register_buffer; engine.py keeps buffers fp32"
)
MASTER = Term("fp32 master parameters", "4·P", f"{ZERO} §3.1; stage_1_and_2.py, stage3.py _create_fp32_partitions")
OPTIMIZER_STATES = Term("optimizer states", "4·P per state (Adam: 2)", f"{ZERO} §3.1; created in the first step")
LEAKED_STATES = Term(
    "Adagrad states of the unpartitioned model", "e·Ψ", "engine.basic_optimizer keeps the sums built before ZeRO"
)
GRADIENTS = Term("gradients", "e·Ψ", "torch autograd; kept until the accumulation boundary in stages 0 and 1")
GRADIENT_PARTITION = Term(
    "gradient partition",
    "e·ΣG (stage 3: e·P)",
    "stage_1_and_2.py grads_in_partition; stage3.py grad_partitions_flat_buffer",
)

WHOLE_GRADIENTS = Term(
    "fp32 gradients of the whole model", "4·Ψp", "bf16_optimizer.py _setup_for_real_optimizer: grad_accum_dtype fp32"
)
COMPACT_GRADIENTS = Term(
    "fp32 gradient partition", "4·P", "stage_1_and_2.py _build_compact_grad_partition_buffer: grad_accum_dtype fp32"
)

MUON_MOMENTUM = Term(
    "Muon momentum",
    "e·ΣG, of whole matrices (stage 3: c·P; stage 0: 4·n each)",
    "stage_1_and_2.py _muon_momentum_buffer; stage3.py _create_momentum_buffer; muon_optimizer.py step",
)
MUON_STAGED_MOMENTUM = Term(
    "Muon momentum of the step under way", "e·ΣG, of whole matrices", "stage_1_and_2.py _muon_staging_momentum"
)
MUON_UPDATES = Term(
    "Muon updates", "g·n each, of whole matrices", "original_muon.py muon_update; stage_1_and_2.py get_flat_partition"
)
NEWTON_SCHULZ = Term(
    "Newton-Schulz temporaries",
    "of one matrix n·m, n ≤ m: copies of it and of n·n, in fp16",
    "original_muon.py muon_update, line by line",
)
MUON_GATHERED = Term(
    "whole gradients and momentum of Muon's matrices",
    "4·n each, of matrices of up to 2²³ elements together",
    "stage_1_and_2.py _muon_all_gather_partitions; stage3.py _partitioned_buffers_all_gather",
)
MUON_GATHERING = Term(
    "buffers in which Muon's matrices are gathered",
    "(N+1) times a rank's part, up to 64 MiB; kept",
    "stage_1_and_2.py _muon_all_gather_partitions; stage3.py _partitioned_buffers_all_gather",
)
MUON_EXCHANGE = Term(
    "gradients and momentum of Muon's matrices, exchanged or cut",
    "c·n and c·⌈n/N⌉ each",
    "stage3.py _muon_update_sub_group, _apply_muon_updates_cpu_offload",
)
HOST_MUON_MOMENTUM = Term("Muon momentum (host)", "4·P", "stage_1_and_2.py _apply_muon_updates_cpu_offload", PAGEABLE)

HOST_MASTER = Term("fp32 master parameters (host)", "4·P", "ZeRO-Offload arXiv:2101.06840; stage_1_and_2.py", PINNED)
HOST_MASTER_PAGEABLE = Term("fp32 master parameters (host)", "4·P", "stage3.py _create_fp32_partitions", PAGEABLE)
HOST_GRADIENTS = Term("fp32 gradients (host)", "4·P", "initialize_optimizer_states, pinned", PINNED)
HOST_GRADIENT_PARTITION = Term("gradient partition (host)", "e·P", "stage3.py grad_partitions_flat_buffer", PINNED)
HOST_PARAMETERS = Term("partitioned parameters (host)", "e·P", "stage3.py param_groups_fp16_flat_cpu_memory", PINNED)
HOST_STAGING = Term("16-bit parameter staging (host)", "e·P", "param_buffer_of_bit16_for_cpu_offload_groups", PINNED)
HOST_GRADIENT_STAGING = Term("gradient staging (host)", "e·n_max", "temp_grad_buffer_for_cpu_offload", PINNED)
HOST_ACCUMULATION = Term(
    "accumulated gradients (host)", "e·n per owned parameter", "async_accumulate_grad_in_cpu_via_gpu", PINNED
)
HOST_STATES = Term("optimizer states (host)", "4·P per state (Adam: 2)", "DeepSpeedCPUAdam, first step", PAGEABLE)
HOST_MODEL = Term(
    "model while it is built (host)", "4·Ψ, then e·Ψ", "nn.Module constructor in fp32 on the CPU", PAGEABLE
)
HOST_FLAT = Term(
    "model while it is flattened (host)",
    "2·e·Ψ",
    "stage_1_and_2.py __init__, where the device lacks the room: flatten_on_accelerator",
    PAGEABLE,
)
HOST_OVERFLOW = Term(
    "overflow check of the gradient partition (host)",
    "g·P + P",
    "stage3.py has_overflow: isinf is abs() == inf",
    PAGEABLE,
)
HOST_CAST = Term(
    "updated parameters cast on their way to the device (host)",
    "e·P",
    "stage3.py _reassign_or_swap_out_partitioned_parameters; aten cuda/Copy.cu",
    PAGEABLE,
)
HOST_TRANSIENT = Term(
    "unpinned twins while pinning (host)", "size of the pinned buffer", "tensor.pin_memory()", PAGEABLE
)

SWAP_OPTIMIZER = Term(
    "NVMe buffers of the optimizer (host)",
    "4·buffer_count·(largest sub-group, aligned to 1 KiB)",
    "swap_tensor/optimizer_utils.py SwapBufferManager, page-locked outside torch's pool",
    PINNED,
    pooled=False,
)
SWAP_PARAMETERS = Term(
    "NVMe buffers of the parameters (host)",
    "e·buffer_count·buffer_size",
    "swap_tensor/partitioned_param_swapper.py, page-locked outside torch's pool",
    PINNED,
    pooled=False,
)

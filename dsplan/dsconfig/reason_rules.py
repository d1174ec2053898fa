"""The rules: for each key why its value is what it is, what it costs, and where that is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH
from dsplan.dsconfig.buckets import LARGEST_BUCKET, SMALLEST_REDUCE_BUCKET, SUB_GROUP_SIZE
from dsplan.dsconfig.costs import Cost, Costs
from dsplan.errors import InputError
from dsplan.units import format_bytes
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

#: Names that :mod:`dsplan.buffers` and :mod:`dsplan.states` give to what is looked up among the live terms.
REDUCE_BUCKET = "reduce bucket"
STATES = ("optimizer states", "optimizer states (host)")
SWAP_OPTIMIZER = "NVMe buffers of the optimizer (host)"
SWAP_PARAMETERS = "NVMe buffers of the parameters (host)"
HOST_PARAMETERS = "partitioned parameters (host)"

_ZERO = "zero_optimization."
_STAGE12 = "DeepSpeed runtime/zero/stage_1_and_2.py"
_STAGE3 = "DeepSpeed runtime/zero/stage3.py"
_COORDINATOR = "DeepSpeed runtime/zero/partitioned_param_coordinator.py"
_CONFIG = "DeepSpeed runtime/config.py"
_SWAP = "DeepSpeed runtime/swap_tensor"

#: (why, cost, source)
Answer = tuple[str, Cost, str]
Rule = Callable[[Costs], Answer]


def rule_of(key: str) -> Rule:
    """The rule of a dotted ``key``, under either of its names; there is one for every key."""
    if key in _RULES:
        return _RULES[key]
    # Stage 3 knows most of its keys under a shorter name too.
    long = f"{_ZERO}stage3_{key.removeprefix(_ZERO)}"
    if key.startswith(_ZERO) and long in _RULES:
        return _RULES[long]
    for prefix, rule in _SECTIONS.items():
        if key.startswith(prefix):
            return rule
    return lambda _: ("changes no memory of a training step", Cost(), _CONFIG)


def _nothing(why: str, source: str) -> Rule:
    return lambda _: (why, Cost(), source)


# Batch sizes, precision and optimizer.


def _train_batch(costs: Costs) -> Answer:
    workload, ranks = costs.plan.workload, costs.cluster.world_size
    parts = f"{workload.micro_batch_size} x {workload.gradient_accumulation_steps} x {ranks}"
    return f"micro batch x accumulation steps x ranks = {parts}", Cost(), f"{_CONFIG} _batch_assertion"


def _micro_batch(costs: Costs) -> Answer:
    micro = costs.plan.workload.micro_batch_size
    twice = replace(costs.plan, workload=replace(costs.plan.workload, micro_batch_size=2 * micro))
    cost = costs.difference(costs.plan, to=twice)
    why = f"samples of one pass; the cost is that of their activations: what {micro} more would add to the peak"
    return why, cost, "torch autograd: what each operator saves for its backward pass"


def _accumulation(costs: Costs) -> Answer:
    steps = costs.plan.workload.gradient_accumulation_steps
    source = f"{_STAGE12}, runtime/zero/stage3.py: gradients kept between micro batches"
    if steps == 1:
        return "each micro batch is an optimizer step", Cost(0, 0), source
    return (
        f"{steps} micro batches a step; compared with one",
        costs.against_workload(gradient_accumulation_steps=1),
        source,
    )


def _precision(name: str) -> Rule:
    def rule(costs: Costs) -> Answer:
        source = "DeepSpeed runtime/precision_config.py; ZeRO arXiv:1910.02054 section 3.1"
        precision = costs.plan.workload.precision
        if precision == "fp32":
            return "training is in fp32; compared with bf16", costs.against_workload(precision="bf16"), source
        if precision != name:
            return f"off: training is in {precision}", Cost(), source
        why = f"{precision}: 2 bytes an element, at the price of fp32 masters; compared with fp32"
        return why, costs.against_workload(precision="fp32"), source

    return rule


def _optimizer(costs: Costs) -> Answer:
    where = "on the host" if costs.zero.offloads_optimizer else f"at the peak, in {costs.peak}"
    why = f"{costs.plan.workload.optimizer}: the cost is that of its states {where}"
    return why, costs.live(*STATES), "ZeRO arXiv:1910.02054 section 3.1; created in the first step"


def _torch_adam(costs: Costs) -> Answer:
    cost = costs.difference(replace(costs.plan, torch_adam=not costs.plan.torch_adam))
    return "torch's Adam in place of DeepSpeed's fused one", cost, "torch.optim foreach implementations"


def _clipping(costs: Costs) -> Answer:
    cost = costs.difference(replace(costs.plan, gradient_clipping=0.0))
    return (
        "largest norm of the gradients; compared with none",
        cost,
        f"{_STAGE12} get_grad_norm_direct, scaled_global_norm",
    )


# ZeRO.


def _stage(costs: Costs) -> Answer:
    stage, source = costs.zero.stage, "ZeRO arXiv:1910.02054 sections 3 and 5"
    if stage == 0:
        return "nothing is divided among the ranks", Cost(0, 0), source
    divided = {1: "optimizer states", 2: "gradients", 3: "parameters"}[stage]
    # Without offload: the stage below might not have it, and it is a value of its own.
    plain = replace(costs.zero, offload_optimizer=OffloadOptimizer(), offload_param=OffloadParam())
    mine, below = (replace(costs.plan, zero=replace(plain, stage=number)) for number in (stage, stage - 1))
    bare = " (both without offload)" if plain != costs.zero else ""
    why = f"divides {divided}, too, among {costs.cluster.world_size} ranks; compared with stage {stage - 1}{bare}"
    return why, costs.difference(below, to=mine), source


def _reduce_bucket(costs: Costs) -> Answer:
    zero = costs.zero
    count = 2 if zero.overlaps_communication and zero.stage < 3 else 1
    elements, width = zero.reduce_bucket_size, costs.plan.workload.element_bytes
    size = f"{elements:,} x {width} bytes" + (" x 2 for overlap_comm" if count == 2 else "")
    live = costs.live(REDUCE_BUCKET)
    when = "at the peak" if live.device else f"but not at the peak, in {costs.peak}"
    whole = format_bytes(elements * width * count)
    if not zero.contiguous_gradients and not zero.offloads_optimizer:
        return f"{_origin(costs)}; no buffer without contiguous_gradients", live, f"{_STAGE12} setup_buckets"
    source = f"{_STAGE12} setup_buckets" if zero.stage < 3 else f"{_STAGE3} _setup_for_real_optimizer"
    return f"{_origin(costs)}; allocated in full: {size} = {whole}, {when}", live, source


def _origin(costs: Costs) -> str:
    """Where ``reduce_bucket_size`` comes from (:func:`dsplan.dsconfig.buckets.tuned`)."""
    size, model = costs.zero.reduce_bucket_size, costs.model
    matrix = max(parameter.numel for parameter in model.block_parameters)
    known = {
        LARGEST_BUCKET: "DeepSpeed's default, above which a collective gains nothing",
        SMALLEST_REDUCE_BUCKET: "2^24 elements, below which collectives waste bandwidth on latency",
        model.hidden_size**2: "hidden size squared, Hugging Face's rule",
        matrix: "the largest matrix of a block, so that no gradient goes around the bucket",
        model.num_parameters: "the whole model",
    }
    return known.get(size, "as chosen")


def _allgather_bucket(costs: Costs) -> Answer:
    why = "parameters are gathered in place, so that a large bucket costs nothing; compared with the smallest"
    return why, costs.against(allgather_bucket_size=1), f"{_STAGE12} step, all_gather_dp_groups"


def _switch(name: str, why: str, source: str) -> Rule:
    def rule(costs: Costs) -> Answer:
        current = costs.zero.overlaps_communication if name == "overlap_comm" else getattr(costs.zero, name)
        return f"{why}; compared with {str(not current).lower()}", costs.against(**{name: not current}), source

    return rule


def _threshold(name: str, why: str, other: int, compared: str, source: str) -> Rule:
    def rule(costs: Costs) -> Answer:
        default = getattr(ZeroConfig(), name)
        chosen = "DeepSpeed's default" if getattr(costs.zero, name) == default else _rule_of_thumb(costs, name)
        return f"{why}: {chosen}; compared with {compared}", costs.against(**{name: other}), source

    return rule


def _rule_of_thumb(costs: Costs, name: str) -> str:
    value, h = getattr(costs.zero, name), costs.model.hidden_size
    known = {
        "stage3_prefetch_bucket_size": (9 * h * h // 10, "0.9 x hidden size squared, Hugging Face's rule"),
        "stage3_param_persistence_threshold": (10 * h, "10 x hidden size, which keeps norms and biases in place"),
    }
    chosen, text = known.get(name, (None, ""))
    return text if value == chosen else "as chosen"


def _sub_group(costs: Costs) -> Answer:
    source = f"{_STAGE3} _create_fp16_sub_groups, _prepare_fp32_grad_for_sub_group"
    default = ZeroConfig().sub_group_size
    if costs.zero.sub_group_size == default:
        text = f"DeepSpeed's default; compared with {SUB_GROUP_SIZE:,}"
        return f"elements of one tile of the update: {text}", costs.against(sub_group_size=SUB_GROUP_SIZE), source
    text = f"each tile is copied to fp32 alone; compared with DeepSpeed's {default:,}"
    return f"elements of one tile of the update: {text}", costs.against(sub_group_size=default), source


# Offload.


def _offload_device(name: str, what: str) -> Rule:
    def rule(costs: Costs) -> Answer:
        source = "ZeRO-Offload arXiv:2101.06840; ZeRO-Infinity arXiv:2104.07857"
        section: OffloadOptimizer | OffloadParam = getattr(costs.zero, name)
        if section.device == "none":
            return f"{what} stay on the device", Cost(0, 0), source
        where = "to the host" if section.device == "cpu" else "to NVMe, through buffers on the host"
        try:
            cost = costs.against(**{name: type(section)()})
        except InputError:  # the optimizer or the stage needs it
            return f"moves {what} {where}", Cost(), source
        return f"moves {what} {where}; compared with none", cost, source

    return rule


def _pin_memory(name: str) -> Rule:
    def rule(costs: Costs) -> Answer:
        source = "aten CachingHostAllocator.h: pinned blocks are powers of two"
        section: OffloadOptimizer | OffloadParam = getattr(costs.zero, name)
        if not section.pin_memory:
            return "pageable memory: copies are slower, and sizes are not rounded up", Cost(0, 0), source
        changed: dict[str, Any] = {name: replace(section, pin_memory=False)}
        other = replace(costs.plan, zero=replace(costs.zero, **changed))
        ranks = costs.cluster.gpus_per_node
        pinned = ranks * (costs.row.host.pinned_bytes - costs.of(other).host.pinned_bytes)
        cost = costs.difference(other)
        more = format_bytes(cost.host or 0)
        why = f"page-locked, so that copies overlap, in powers of two: the node takes {more} more than without"
        return why, Cost(cost.device, pinned), source

    return rule


def _ratio(costs: Costs) -> Answer:
    section = replace(costs.zero.offload_optimizer, ratio=1.0)
    why = "share of the states that is offloaded; compared with all"
    return why, costs.against(offload_optimizer=section), f"{_STAGE3} subgroup_to_device"


def _swap_buffers(term: str, why: str) -> Rule:
    return lambda costs: (why, costs.live(term), f"{_SWAP}, buffers page-locked whatever is swapped")


# Activation checkpointing.


def _checkpoints(costs: Costs) -> Answer:
    cost = costs.against_workload(activation_checkpointing="none")
    why = "a checkpoint a block, if the model calls deepspeed.checkpointing; compared with keeping all activations"
    return why, cost, "arXiv:1604.06174; DeepSpeed runtime/activation_checkpointing/checkpointing.py"


_LOSS_SCALE = _nothing("loss scaling, which changes no memory", "DeepSpeed runtime/fp16/loss_scaler.py")
_AIO = _nothing("requests to the drive, which change no memory", "DeepSpeed runtime/swap_tensor/aio_config.py")
_OFF = _nothing(
    "off: the model's memory is what is planned", "DeepSpeed runtime/activation_checkpointing/checkpointing.py"
)

#: Dotted key -> its rule.
_RULES: dict[str, Rule] = {
    TRAIN_BATCH: _train_batch,
    MICRO_BATCH: _micro_batch,
    ACCUMULATION: _accumulation,
    "bf16.enabled": _precision("bf16"),
    "fp16.enabled": _precision("fp16"),
    "optimizer.type": _optimizer,
    "optimizer.params.torch_adam": _torch_adam,
    "gradient_clipping": _clipping,
    "zero_allow_untested_optimizer": _nothing(
        "ZeRO takes this optimizer only if told so", "DeepSpeed runtime/zero/utils.py ZERO_SUPPORTED_OPTIMIZERS"
    ),
    "activation_checkpointing": _checkpoints,
    "activation_checkpointing.number_checkpoints": _checkpoints,
    "steps_per_print": _nothing("how often progress is logged", _CONFIG),
    "wall_clock_breakdown": _nothing("logging of times", _CONFIG),
    "bfloat16.enabled": _precision("bf16"),
    "zero_optimization": _stage,  # true is stage 1
    _ZERO + "stage": _stage,
    _ZERO + "reduce_bucket_size": _reduce_bucket,
    _ZERO + "allgather_bucket_size": _allgather_bucket,
    _ZERO + "contiguous_gradients": _switch(
        "contiguous_gradients",
        "gradients are copied to one buffer, which keeps memory whole",
        f"{_STAGE12} setup_buckets",
    ),
    _ZERO + "reduce_scatter": _switch(
        "reduce_scatter", "each rank receives its own part of the gradients only", f"{_STAGE12} average_tensor"
    ),
    _ZERO + "allgather_partitions": _switch(
        "allgather_partitions", "parameters are gathered in place after the update", f"{_STAGE12} step"
    ),
    _ZERO + "overlap_comm": _switch(
        "overlap_comm", "gradients are reduced while backward computes", f"{_STAGE12} setup_buckets: a second bucket"
    ),
    _ZERO + "round_robin_gradients": _switch(
        "round_robin_gradients", "parameters are dealt out to the ranks in turn", f"{_STAGE12} _round_robin_reorder"
    ),
    _ZERO + "memory_efficient_linear": _switch(
        "memory_efficient_linear", "linear layers save less for backward", "DeepSpeed runtime/zero/linear.py"
    ),
    _ZERO + "sub_group_size": _sub_group,
    _ZERO + "stage3_prefetch_bucket_size": _threshold(
        "stage3_prefetch_bucket_size", "elements fetched ahead of use", 0, "none", _COORDINATOR
    ),
    _ZERO + "stage3_param_persistence_threshold": _threshold(
        "stage3_param_persistence_threshold",
        "parameters up to this size stay gathered",
        0,
        "none",
        "DeepSpeed runtime/zero/parameter_offload.py mark_persistent_parameters",
    ),
    _ZERO + "stage3_model_persistence_threshold": _threshold(
        "stage3_model_persistence_threshold",
        "most elements that stay gathered",
        0,
        "none",
        "DeepSpeed runtime/zero/parameter_offload.py mark_persistent_parameters",
    ),
    _ZERO + "stage3_max_live_parameters": _threshold(
        "stage3_max_live_parameters", "most elements that are gathered at a time", 0, "none ahead", _COORDINATOR
    ),
    _ZERO + "stage3_max_reuse_distance": _threshold(
        "stage3_max_reuse_distance", "what is used again within so many elements is kept", 0, "none kept", _COORDINATOR
    ),
    _ZERO + "offload_optimizer.device": _offload_device("offload_optimizer", "optimizer states and their update"),
    _ZERO + "cpu_offload": _offload_device("offload_optimizer", "optimizer states and their update"),
    _ZERO + "cpu_offload_param": _offload_device("offload_param", "the partitioned parameters"),
    _ZERO + "offload_param.device": _offload_device("offload_param", "the partitioned parameters"),
    _ZERO + "offload_optimizer.pin_memory": _pin_memory("offload_optimizer"),
    _ZERO + "offload_param.pin_memory": _pin_memory("offload_param"),
    _ZERO + "offload_optimizer.ratio": _ratio,
    _ZERO + "offload_optimizer.nvme_path": _nothing("folder on the node's drive", _SWAP),
    _ZERO + "offload_param.nvme_path": _nothing("folder on the node's drive", _SWAP),
    _ZERO + "offload_optimizer.buffer_count": _swap_buffers(
        SWAP_OPTIMIZER, "buffers through which states are swapped, each of the largest sub-group"
    ),
    _ZERO + "offload_param.buffer_count": _swap_buffers(
        SWAP_PARAMETERS, "buffers of buffer_size through which parameters are swapped"
    ),
    _ZERO + "offload_param.buffer_size": _nothing(
        "elements of one buffer, enough for the largest partition; buffer_count says what they cost together", _SWAP
    ),
    _ZERO + "offload_param.max_in_cpu": _swap_buffers(HOST_PARAMETERS, "elements of parameters that stay on the host"),
}
#: Beginning of a dotted key -> the rule of what has none of its own.
_SECTIONS: dict[str, Rule] = {
    "optimizer.params.": _nothing(
        "a starting point for training, which changes no memory", "torch.optim, deepspeed.ops"
    ),
    "scheduler.": _nothing(
        "the learning rate's schedule, which changes no memory", "DeepSpeed runtime/lr_schedules.py"
    ),
    "fp16.": _LOSS_SCALE,
    "aio.": _AIO,
    "activation_checkpointing.": _OFF,
}

"""Writing a :class:`Plan` as the JSON file that DeepSpeed reads.

``read_ds_config(emit(plan)) == plan``: every value that differs from DeepSpeed's default is written,
and so is every value that matters at the plan's stage, so that the file says what was planned.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from dsplan.dsconfig.buckets import with_nvme_path
from dsplan.dsconfig.optimizer_section import UNTESTED
from dsplan.errors import InputError, require_positive
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import OPTIMIZERS, Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

#: The folder of DeepSpeed's NVMe examples.
NVME_PATH = "/local_nvme"
#: Learning rates after the warm-up: along a cosine, or along a line as older releases have it.
COSINE, LINEAR = "WarmupCosineLR", "WarmupDecayLR"

_OFFLOAD = ("offload_optimizer", "offload_param")
_SECTIONS = (*_OFFLOAD, "leaf_module")
#: Keys that say something at a stage even when they hold the default.
_SHOWN_BELOW_3 = ("reduce_scatter", "reduce_bucket_size", "allgather_partitions", "allgather_bucket_size")
_SHOWN: dict[int, tuple[str, ...]] = {
    0: (),
    1: _SHOWN_BELOW_3,
    2: ("contiguous_gradients", *_SHOWN_BELOW_3),
    3: (
        "contiguous_gradients",
        "reduce_bucket_size",
        "sub_group_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
    ),
}
#: Buffers of the NVMe pools, of no meaning on the CPU.
_NVME_ONLY = ("nvme_path", "buffer_count", "buffer_size", "max_in_cpu")

#: Usual starting points for a language model; neither changes memory.
_OPTIMIZER_PARAMS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    "adam": {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
    "lion": {"lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.3},
    "adagrad": {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.0},
    "sgd": {"lr": 1e-2, "weight_decay": 0.0},
    "muon": {"lr": 3e-4, "muon_lr": 2e-2, "momentum": 0.95, "betas": [0.9, 0.95], "eps": 1e-10, "weight_decay": 0.1},
}
_AIO = {
    "block_size": 1048576,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}


def emit(
    plan: Plan,
    model: ModelShape,
    cluster: Cluster,
    *,
    total_num_steps: int = 10_000,
    warmup_num_steps: int | None = None,
    nvme_path: str = NVME_PATH,
    scheduler: str = COSINE,
) -> dict[str, Any]:
    """The DeepSpeed configuration of ``plan`` for ``model`` on ``cluster``.

    Learning rates and schedule are starting points and change no memory. Bucket sizes are the plan's:
    :func:`dsplan.dsconfig.buckets.tuned` chooses them before the plan is estimated.

    Args:
        plan: the strategy.
        model: the model; its depth is the number of activation checkpoints.
        cluster: its world size makes the three batch sizes consistent.
        total_num_steps: optimizer steps of the schedule.
        warmup_num_steps: optimizer steps of warm-up; a hundredth of the total when not given.
        nvme_path: folder for offload to NVMe where the plan names none.
        scheduler: ``WarmupCosineLR``, or ``WarmupDecayLR`` (linear) for releases that lack it.

    Raises:
        InputError: a number of steps below 1, more warm-up than steps, or torch_adam with an
            optimizer that is not Adam.
    """
    require_positive("total_num_steps", total_num_steps)
    warmup = max(1, total_num_steps // 100) if warmup_num_steps is None else warmup_num_steps
    require_positive("warmup_num_steps", warmup)
    if warmup > total_num_steps:
        raise InputError(f"warmup_num_steps: {warmup} is not allowed; it must be at most the {total_num_steps} steps")

    workload, zero = plan.workload, with_nvme_path(plan.zero, nvme_path)
    micro, steps = workload.micro_batch_size, workload.gradient_accumulation_steps
    document: dict[str, Any] = {
        "train_batch_size": micro * steps * cluster.world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        **_precision(workload.precision),
        **_gradient_dtypes(workload),
        **_autocast(plan),
        "optimizer": _optimizer(plan),
        "scheduler": _scheduler(scheduler, plan, total_num_steps, warmup),
        "gradient_clipping": plan.gradient_clipping,
        "zero_optimization": _zero(zero),
    }
    if zero.stage > 0 and workload.optimizer in UNTESTED:
        document["zero_allow_untested_optimizer"] = True
    if "nvme" in (zero.offload_optimizer.device, zero.offload_param.device):
        document["aio"] = dict(_AIO)
    if workload.activation_checkpointing == "deepspeed":
        # torch.utils.checkpoint never reads the section; for a reader it would mean DeepSpeed's.
        document["activation_checkpointing"] = {
            "partition_activations": plan.checkpointing.partition_activations,
            "contiguous_memory_optimization": plan.checkpointing.contiguous_memory_optimization,
            "cpu_checkpointing": plan.checkpointing.cpu_checkpointing,
            "number_checkpoints": plan.checkpointing.number_checkpoints or model.num_layers,
            "synchronize_checkpoint_boundary": False,
            "profile": False,
        }
    document["steps_per_print"] = 10
    document["wall_clock_breakdown"] = False
    return document


def _precision(precision: str) -> dict[str, Any]:
    if precision == "bf16":
        return {"bf16": {"enabled": True}}
    if precision == "fp16":
        return {
            "fp16": {
                "enabled": True,
                "loss_scale": 0,
                "initial_scale_power": 16,
                "loss_scale_window": 1000,
                "hysteresis": 2,
                "min_loss_scale": 1,
            }
        }
    # Absent, Hugging Face's Trainer would take fp16 for meant.
    return {"fp16": {"enabled": False}}


def _gradient_dtypes(workload: Workload) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if workload.grad_accum_dtype is not None:
        document["data_types"] = {"grad_accum_dtype": workload.grad_accum_dtype}
    if workload.communication_data_type is not None:
        document["communication_data_type"] = workload.communication_data_type
    return document


def _autocast(plan: Plan) -> dict[str, Any]:
    names = {"bf16": "bfloat16", "fp16": "float16"}
    if plan.torch_autocast is None:
        return {}
    return {"torch_autocast": {"enabled": True, "dtype": names[plan.torch_autocast]}}


def _scheduler(name: str, plan: Plan, total_num_steps: int, warmup_num_steps: int) -> dict[str, Any]:
    params: dict[str, Any] = {"total_num_steps": total_num_steps, "warmup_num_steps": warmup_num_steps}
    if name == COSINE:
        params |= {"warmup_min_ratio": 0.0, "warmup_type": "linear", "cos_min_ratio": 0.1}
    else:  # it does not take its highest rate from the optimizer (runtime/lr_schedules.py)
        highest = _optimizer(plan)["params"]["lr"]
        params |= {"warmup_min_lr": 0.0, "warmup_max_lr": highest, "warmup_type": "linear"}
    return {"type": name, "params": params}


def _optimizer(plan: Plan) -> dict[str, Any]:
    name = plan.workload.optimizer
    params = dict(_OPTIMIZER_PARAMS[name])
    if plan.torch_adam:
        if name not in ("adam", "adamw"):
            raise InputError(f"torch_adam: goes with adamw and adam only, not with {name}")
        params["torch_adam"] = True
    return {"type": OPTIMIZERS[name], "params": params}


def _zero(zero: ZeroConfig) -> dict[str, Any]:
    default = ZeroConfig()
    section: dict[str, Any] = {"stage": zero.stage}
    for key in (field.name for field in fields(ZeroConfig) if field.name not in _SECTIONS):
        value = getattr(zero, key)
        if key in _SHOWN[zero.stage] or value != getattr(default, key):
            section[key] = value
    for name in _OFFLOAD:
        offload: OffloadOptimizer | OffloadParam = getattr(zero, name)
        if offload != type(offload)():
            section[name] = _offload(offload)
    leaves = {key: list(value) for key, value in asdict(zero.leaf_module).items() if value not in (None, ())}
    if zero.leaf_module.classes is not None:
        leaves["classes"] = list(zero.leaf_module.classes)  # an empty list is no default
    if leaves:
        section["leaf_module"] = leaves
    return section


def _offload(offload: OffloadOptimizer | OffloadParam) -> dict[str, Any]:
    default = asdict(type(offload)())
    return {
        key: value
        for key, value in asdict(offload).items()
        if key in ("device", "pin_memory") or (key in _NVME_ONLY and offload.device == "nvme") or value != default[key]
    }

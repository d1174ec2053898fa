"""Settings that change memory and that the formulas do not model yet, and which of them a dry run covers.

An estimate that ignored one of them would be wrong without saying so; the reader stops instead. A dry run has the
real engine, so it covers more; what it does not is what we have not followed through DeepSpeed's code.
Settings that change no memory of a training step (logging, checkpoint tags, loss scales, ...) pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.errors import InputError

_DTYPES = {
    "fp32": ("fp32", "float32", "float", "torch.float32"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
}

STAGE_3 = 3
GRAD_ACCUM_DTYPE = "data_types.grad_accum_dtype"
#: Stages whose engines are modelled with fp32 gradients in either 16-bit precision, offloaded or not; but Adagrad with
#: BF16_Optimizer, which loses its states.
_STAGES_WITH_FP32_GRADIENTS = (1, 2, 3)

#: Dotted key -> the values whose memory is modelled; the first is DeepSpeed's default. An absent key passes.
MODELLED_VALUES: dict[str, tuple[Any, ...]] = {
    "zero_optimization.use_multi_rank_bucket_allreduce": (True,),
    "zero_optimization.compute_grad_norm": (True,),
    "zero_optimization.zenflow": (None,),
    "zero_optimization.stage3_module_granularity_threshold": (0,),
    "zero_optimization.module_granularity_threshold": (0,),
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": (False,),
    "zero_optimization.use_all_reduce_for_fetch_params": (False,),
    "zero_optimization.stage3_allgather_sequential": (False,),
    "zero_optimization.allgather_sequential": (False,),
    "zero_optimization.legacy_stage1": (False,),
    "zero_optimization.parameter_alignment": (False,),
    "zero_optimization.zero_quantized_weights": (False,),
    "zero_optimization.zero_quantized_nontrainable_weights": (False,),
    "zero_optimization.zero_quantized_gradients": (False,),
    "zero_optimization.enable_sanity_checks": (False,),
    "zero_optimization.offload_optimizer.pipeline_read": (False,),
    "zero_optimization.offload_optimizer.pipeline_write": (False,),
    "zero_optimization.offload_optimizer.fast_init": (False,),
    "zero_optimization.offload_optimizer.super_offload": (False,),
    "fp16.fp16_master_weights_and_grads": (False,),
    "bf16.check_grad_overflow": (True,),
    "bf16.bf16_master_weights_and_grads": (False,),
    "bf16.bf16_optimizer_states": (False,),
    "data_types.buffer_dtype": (None,),
    "data_types.keep_in_fp32_modules": ("auto", []),
    "optimizer.legacy_fusion": (False,),
    "managed_gradient_accumulation": (True,),
    "disable_python_gc": (False,),
    "aio.use_gds": (False,),
    "hybrid_engine.enabled": (False,),
    "autotuning.enabled": (False,),
    "data_efficiency.enabled": (False,),
    "expert_parallel.enabled": (False,),
    "sequence_parallel_size": (1,),
    "tensor_parallel.autotp_size": (0, 1),
    "tensor_parallel.tp.tp_size": (1,),
    "tensor_parallel.tensor_parallel.tp_size": (1,),
    "compile.deepcompile": (False,),
    "compile.autoep_non_moe": (False,),
    "compile.free_activation": (False,),
    "compile.offload_activation": (False,),
    "compile.offload_opt_states": (False,),
    "compile.offload_parameters": (False,),
    "checkpoint.writer": (None,),
    "datastates_ckpt": (False,),
    "weight_quantization": ({},),
    "pipeline": ({},),
}

#: Dotted keys of the above whose other values a dry run covers.
COVERED_BY_DRY_RUN = frozenset(
    {
        "zero_optimization.zero_hpz_partition_size",
        "zero_optimization.use_multi_rank_bucket_allreduce",
        "zero_optimization.compute_grad_norm",
        "zero_optimization.stage3_use_all_reduce_for_fetch_params",
        "zero_optimization.use_all_reduce_for_fetch_params",
        "zero_optimization.stage3_allgather_sequential",
        "zero_optimization.allgather_sequential",
        "zero_optimization.zero_quantized_weights",
        "zero_optimization.offload_optimizer.pipeline_read",
        "zero_optimization.offload_optimizer.pipeline_write",
        "bf16.check_grad_overflow",
        "bf16.bf16_master_weights_and_grads",
        "bf16.bf16_optimizer_states",
        "torch_autocast.enabled",
        "data_types.grad_accum_dtype",
        "communication_data_type",
        "aio.intra_op_parallelism",
    }
)


def require_modelled(document: Mapping[str, Any], precision: str, *, dry_run: bool = False) -> tuple[str, ...]:
    """The settings of ``document`` that the formulas do not model yet, as ``KEY = VALUE``: none, but for a dry run.

    Raises:
        InputError: the document has such a setting; for ``dry_run``, one that a dry run does not cover either.
    """
    found = [
        *_table(document),
        *_dtypes(document, precision),
        *_nvme(document),
        *_autocast(document, precision),
        *_secondary(document),
    ]
    refused = [setting for setting in found if not (dry_run and setting.key in COVERED_BY_DRY_RUN)]
    if refused:
        why = (
            "neither the formulas nor the dry run cover"
            if dry_run
            else "not modelled yet, so no estimate would be right"
        )
        raise InputError(f"{why}: {'; '.join(map(str, refused))}. Remove it, or give the value named")
    return tuple(f"{setting.key} = {setting.value!r}" for setting in found)


@dataclass(frozen=True, slots=True)
class _Setting:
    """A value that is not modelled; ``modelled`` says which ones are."""

    key: str
    value: Any
    modelled: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r} (modelled: {self.modelled})"


def _table(document: Mapping[str, Any]) -> Iterator[_Setting]:
    for key, modelled in MODELLED_VALUES.items():
        value, given = lookup(document, key)
        # 1 == True in Python, but the schema has refused booleans for numbers and the reverse.
        if given and value not in modelled:
            yield _Setting(key, value, " or ".join(repr(option) for option in modelled))


def _dtypes(document: Mapping[str, Any], precision: str) -> Iterator[_Setting]:
    """fp32 gradients beside a 16-bit model have engines of their own in stages 1 and 2."""
    value, _ = lookup(document, GRAD_ACCUM_DTYPE)
    if value is None or precision_named(value) == precision:
        return
    stage = lookup(document, "zero_optimization.stage")[0]
    offload = lookup(document, "zero_optimization.offload_optimizer.device")[0] in ("cpu", "nvme")
    optimizer = lookup(document, "optimizer.type")[0] or ""
    lost = stage == 1 and precision == "bf16" and not offload and optimizer.casefold() == "adagrad"
    known = stage in _STAGES_WITH_FP32_GRADIENTS and not lost
    if precision_named(value) != "fp32" or not known:
        yield _Setting(GRAD_ACCUM_DTYPE, value, f"{precision!r}, the model's dtype; 'fp32' in 16 bit with ZeRO")


def _autocast(document: Mapping[str, Any], precision: str) -> Iterator[_Setting]:
    """fp32 weights, a dtype that is given, and what torch's default is where classes of modules are not listed."""
    key = "torch_autocast.enabled"
    if lookup(document, key)[0] is not True:
        return
    dtype = lookup(document, "torch_autocast.dtype")[0]
    if precision != "fp32":
        yield _Setting(key, True, f"false in {precision}")
    elif dtype is None or precision_named(dtype) not in ("fp16", "bf16"):
        yield _Setting(key, True, "with torch_autocast.dtype 'bfloat16' or 'float16'")
    elif lookup(document, "torch_autocast.lower_precision_safe_modules")[0] is not None:
        yield _Setting(key, True, "without lower_precision_safe_modules")
    elif lookup(document, "communication_data_type")[0] is not None:
        yield _Setting(key, True, "without communication_data_type")
    elif lookup(document, "zero_optimization.memory_efficient_linear")[0] is False and _stage(document) == STAGE_3:
        yield _Setting(key, True, "with memory_efficient_linear at stage 3")


def autocast_dtype(document: Mapping[str, Any], precision: str) -> str | None:
    """``bf16`` or ``fp16`` where torch_autocast is on and modelled, else None."""
    if lookup(document, "torch_autocast.enabled")[0] is not True or any(_autocast(document, precision)):
        return None
    return precision_named(lookup(document, "torch_autocast.dtype")[0])


def _secondary(document: Mapping[str, Any]) -> Iterator[_Setting]:
    """hpZ keeps its secondary partitions on the host where the parameters are."""
    key = "zero_optimization.zero_hpz_partition_size"
    size, _ = lookup(document, key)
    offloads = lookup(document, "zero_optimization.offload_param.device")[0] in ("cpu", "nvme")
    if _stage(document) == STAGE_3 and offloads and size not in (None, 1):
        yield _Setting(key, size, "1 with offload_param")


def _stage(document: Mapping[str, Any]) -> Any:
    return lookup(document, "zero_optimization.stage")[0]


def _nvme(document: Mapping[str, Any]) -> Iterator[_Setting]:
    """Swap buffers are aligned to 1024 bytes a thread (DeepSpeed ``runtime/swap_tensor/utils.py``)."""
    threads, _ = lookup(document, "aio.intra_op_parallelism")
    devices = [
        lookup(document, f"zero_optimization.{name}.device")[0] for name in ("offload_optimizer", "offload_param")
    ]
    if threads not in (None, 1) and "nvme" in devices:
        yield _Setting("aio.intra_op_parallelism", threads, "1")


def lookup(document: Mapping[str, Any], key: str) -> tuple[Any, bool]:
    """The value at the dotted ``key`` and whether it is there; (None, False) when it is not."""
    value: Any = document
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None, False
        value = value[part]
    return value, True


def precision_named(name: str) -> str | None:
    """``fp32``, ``fp16`` or ``bf16`` for one of DeepSpeed's names of it; None for another name."""
    return next((precision for precision, names in _DTYPES.items() if name.lower() in names), None)


def same_dtype(name: str, precision: str) -> bool:
    """Whether DeepSpeed's dtype ``name`` is that of ``precision`` (``DtypeEnum`` in ``runtime/config.py``)."""
    return name in _DTYPES[precision]

"""Swap: the files that ZeRO-Infinity writes, and the memory that it locks to write them.

Source: DeepSpeed 0.19.8 runtime/swap_tensor. Tensors of at least 1 MiB are written (utils.py MIN_AIO_BYTES), rounded up
to whole pieces of 1 KiB (AIO_ALIGNED_BYTES; ``aio.intra_op_parallelism`` of 1, the default). Buffers are locked with
mlock (SwapBufferManager, partitioned_param_swapper.py: new_cpu_locked_tensor; csrc/pin_memory/page_alloc.cpp). Stages 1
and 2 take ``nvme`` for ``cpu`` and write nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsplan.model import ModelShape
from dsplan.optimizers import host_optimizer
from dsplan.plan import Plan
from dsplan.units import MIB, ceil_div, round_up

SMALLEST_BYTES = MIB
ALIGNED_BYTES = 1024
STAGE_THAT_SWAPS = 3
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """Bytes of one rank: files by folder (``nvme_path``), and what it locks in memory."""

    files: tuple[tuple[str, int], ...] = ()
    locked_bytes: int = 0


def swapped(model: ModelShape, plan: Plan, world_size: int) -> Swapped:
    """What each rank of ``plan`` writes and locks; all ranks are alike."""
    zero = plan.zero
    if zero.stage != STAGE_THAT_SWAPS or "nvme" not in (zero.offload_optimizer.device, zero.offload_param.device):
        return Swapped()
    parts = [ceil_div(parameter.numel, world_size) for parameter in model.parameters]
    element_bytes = plan.workload.element_bytes
    files: dict[str, int] = {}
    locked = 0
    if zero.offload_optimizer.device == "nvme":
        groups = _sub_groups(parts, zero.sub_group_size)
        tensors = 1 + host_optimizer(plan).num_states  # fp32 masters and each state: SwapTensorContext
        size = tensors * sum(_file(elements, _FP32) for elements in groups)
        size += sum(_gradient_file(part) for part in parts)
        files[zero.offload_optimizer.nvme_path or ""] = size
        locked += zero.offload_optimizer.buffer_count * round_up(_FP32 * max(groups), ALIGNED_BYTES)
    if zero.offload_param.device == "nvme":
        folder = zero.offload_param.nvme_path or ""
        files[folder] = files.get(folder, 0) + sum(_file(part, element_bytes) for part in parts)
        buffer = round_up(element_bytes * zero.offload_param.buffer_size, ALIGNED_BYTES)
        locked += zero.offload_param.buffer_count * buffer
    return Swapped(files=tuple(files.items()), locked_bytes=locked)


def _file(elements: int, width: int) -> int:
    size = width * elements
    return round_up(size, ALIGNED_BYTES) if size >= SMALLEST_BYTES else 0


def _gradient_file(elements: int) -> int:
    """_adjust_for_misaligned_lengths: what is left over a whole piece stays in memory."""
    size = _FP32 * elements // ALIGNED_BYTES * ALIGNED_BYTES
    return size if size >= SMALLEST_BYTES else 0


def _sub_groups(parts: Iterable[int], size: int) -> list[int]:
    """Elements of each sub-group (stage3.py _create_fp16_sub_groups): one closes once it has ``size`` elements."""
    groups, elements = [], 0
    for part in parts:
        elements += part
        if elements >= size:
            groups.append(elements)
            elements = 0
    return [*groups, elements] if elements else groups

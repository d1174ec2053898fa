"""Swap: the files that ZeRO-Infinity writes, and the memory that it locks to write them.

Source: DeepSpeed 0.19.8 runtime/swap_tensor. Tensors of at least 1 MiB are written (utils.py MIN_AIO_BYTES), rounded up
to whole pieces of 1 KiB (AIO_ALIGNED_BYTES; ``aio.intra_op_parallelism`` of 1, the default). Buffers are locked with
mlock (SwapBufferManager, partitioned_param_swapper.py: new_cpu_locked_tensor; csrc/pin_memory/page_alloc.cpp). Stages 1
and 2 take ``nvme`` for ``cpu`` and write nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dsplan.engine.stage3_swapping import ALIGNED_BYTES, groups_on_drive, reserved_bytes, sub_groups
from dsplan.engine.trained import trained_part
from dsplan.model import ModelShape
from dsplan.optimizers import host_optimizer
from dsplan.plan import Plan
from dsplan.units import MIB, ceil_div, round_up

SMALLEST_BYTES = MIB
STAGE_THAT_SWAPS = 3
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """Bytes of one rank: files by folder (``nvme_path``), and what it locks in memory."""

    files: tuple[tuple[str, int], ...] = ()
    locked_bytes: int = 0


@lru_cache(maxsize=256)  # asked again for every card that a plan is held against
def swapped(model: ModelShape, plan: Plan, world_size: int) -> Swapped:
    """What each rank of ``plan`` writes and locks; all ranks are alike."""
    zero = plan.zero
    if zero.stage != STAGE_THAT_SWAPS or "nvme" not in (zero.offload_optimizer.device, zero.offload_param.device):
        return Swapped()
    trained = trained_part(model)
    parts = [ceil_div(parameter.numel, world_size) for parameter in trained.parameters]
    grouped = sub_groups(parts, zero.sub_group_size)
    element_bytes = plan.workload.element_bytes
    files: dict[str, int] = {}
    locked = 0
    if zero.offload_optimizer.device == "nvme":
        groups = [sum([parts[index] for index in group]) for group in grouped]
        tensors = 1 + host_optimizer(plan).num_states  # fp32 masters and each state: SwapTensorContext
        size = tensors * sum(_file(elements, _FP32) for elements in groups)
        size += sum(_gradient_file(part) for part in parts)
        files[zero.offload_optimizer.nvme_path or ""] = size
        locked += zero.offload_optimizer.buffer_count * round_up(_FP32 * max(groups), ALIGNED_BYTES)
    if zero.offload_param.device == "nvme":
        folder = zero.offload_param.nvme_path or ""
        every = [ceil_div(parameter.numel, world_size) for parameter in model.parameters]
        files[folder] = files.get(folder, 0) + sum(_file(part, element_bytes) for part in every)
        buffer = round_up(element_bytes * zero.offload_param.buffer_size, ALIGNED_BYTES)
        locked += zero.offload_param.buffer_count * buffer
        if any(groups_on_drive(grouped, parts, zero.offload_param.max_in_cpu)):
            sizes = [parameter.numel for parameter in trained.parameters]
            locked += reserved_bytes(grouped, parts, sizes, element_bytes)
    return Swapped(files=tuple(files.items()), locked_bytes=locked)


def pool_bytes(model: ModelShape, plan: Plan, world_size: int, pinned_bytes: int) -> int:
    """Of a rank's page-locked memory what torch's pinned allocator holds: all but the buffers for swapping, which are
    there from the initialisation to the end."""
    return pinned_bytes - swapped(model, plan, world_size).locked_bytes


def _file(elements: int, width: int) -> int:
    size = width * elements
    return round_up(size, ALIGNED_BYTES) if size >= SMALLEST_BYTES else 0


def _gradient_file(elements: int) -> int:
    """_adjust_for_misaligned_lengths: what is left over a whole piece stays in memory."""
    size = _FP32 * elements // ALIGNED_BYTES * ALIGNED_BYTES
    return size if size >= SMALLEST_BYTES else 0

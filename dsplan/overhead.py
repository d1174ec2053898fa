"""Overhead: memory that no tensor of the program holds."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.hardware import Accelerator
from dsplan.ledger import Term
from dsplan.units import MIB

WORKSPACE = Term(
    "matrix library workspace",
    "32 MiB (sm_90), 8.125 MiB; forward and backward thread",
    "aten/src/ATen/cuda/CublasHandlePool.cpp, one per (handle, stream), from the caching allocator",
)

LT_WORKSPACE = Term(
    "matrix library workspace for products with a bias",
    "1 MiB for each thread that adds a bias; stage 3's linear layer adds it apart",
    "aten/src/ATen/cuda/CublasHandlePool.cpp, parseCUDABlasLtWorkspaceSize; deepspeed/runtime/zero/linear.py",
)

#: Resident memory of one rank with torch, DeepSpeed and CUDA loaded, before the model is built.
#: Measured: H200, torch 2.11, DeepSpeed 0.19.8 (tests/data/measured).
PROCESS_HOST_BYTES = 1730 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Resident memory of one rank's process that no tensor holds, as the run goes on.

    Attributes:
        start_bytes: torch and DeepSpeed loaded, the process group joined, nothing done yet.
        engine_bytes: once the device was used.
        steps_bytes: from the end of the first forward pass on, when the kernels have been loaded.
    """

    start_bytes: int
    engine_bytes: int
    steps_bytes: int


def process_memory(world_size: int) -> ProcessMemory:
    """As measured on an H200 with torch 2.11, CUDA 13.0 and DeepSpeed 0.19.8 (tests/data/measured).

    Base: 742 to 746 MiB for one rank, 1085 to 1090 for two and four, whose collective library is up by then;
    1151 to 1213 MiB after the engine's initialisation where no host memory is held, and 1717 to 1845 at the end.
    """
    start = 745 * MIB if world_size == 1 else 1088 * MIB
    return ProcessMemory(start_bytes=start, engine_bytes=1200 * MIB, steps_bytes=1780 * MIB)


#: What torch's allocator must be given over the predicted peak for a run to live. Measured under a cap
#: (tests/data/caps.json): of 22 cases on an H200, at 1.20 all lived, at 1.10 three died, at 1.05 fourteen.
#: An idle card reserves more than that; under pressure the allocator gives back what it cached.
SURVIVABLE_FRAGMENTATION = 1.20


#: What the first forward pass loads outside the allocator (handles, kernels), and the first backward pass again:
#: part of an accelerator's ``context_bytes``. Measured: H200, every record of tests/data/measured.
PASS_BYTES = 66 * MIB
#: What flash attention's kernels add to each of the two. Measured likewise.
FLASH_PASS_BYTES = 8 * MIB
#: What the overflow check of fp16 at stage 3 loads in the first step, alone and with several ranks. Measured likewise.
OVERFLOW_CHECK_BYTES = (388 * MIB, 288 * MIB)
#: The device maps page-locked host memory in pages of 4 KiB, 8 bytes each. Within 1 MiB of every record with offload.
PINNED_PER_PAGE_TABLE_BYTE = 512


def device_overhead(
    accelerator: Accelerator | None,
    world_size: int,
    *,
    pinned_bytes: int = 0,
    flash_attention: bool = False,
    fp16_stage3: bool = False,
) -> int:
    """Device memory outside torch's allocator once a step was taken: context, kernels, NCCL's buffers, page tables.

    Args:
        accelerator: the device; None: nothing is known of it, 0.
        world_size: ranks.
        pinned_bytes: page-locked host memory of the rank.
        flash_attention: whether flash attention runs.
        fp16_stage3: whether fp16 at stage 3 checks for overflow.
    """
    if accelerator is None or accelerator.kind == "cpu":
        return 0
    several = world_size > 1
    total = accelerator.context_bytes + (accelerator.communication_bytes if several else 0)
    total += pinned_bytes // PINNED_PER_PAGE_TABLE_BYTE
    if accelerator.kind == "cuda":
        total += 2 * FLASH_PASS_BYTES * flash_attention + OVERFLOW_CHECK_BYTES[several] * fp16_stage3
    return total


def with_fragmentation(allocated_bytes: int) -> int:
    """What the allocator must be able to reserve for a peak of ``allocated_bytes``."""
    return round(allocated_bytes * SURVIVABLE_FRAGMENTATION)

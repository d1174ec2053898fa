"""Kernels: what the same operator allocates on different devices.

torch runs one program everywhere, but a CUDA kernel and a CPU kernel of the same operator keep
different tensors for the backward pass and round sizes differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from dsplan.hardware import Accelerator
from dsplan.reductions import Multiprocessors
from dsplan.units import MIB

FLASH = "flash"
EFFICIENT = "efficient"
CPU_FLASH = "cpu-flash"
MATH = "math"

#: c10/cuda/CUDACachingAllocator.cpp ``kMinBlockSize``: every device request is rounded up to this.
CUDA_BLOCK_BYTES = 512
#: The same file, ``kMinLargeAlloc``, ``kRoundLarge``: from here on a request gets a segment of its own, in such steps.
OWN_SEGMENT_BYTES = 10 * MIB
SEGMENT_STEP_BYTES = 2 * MIB
#: The same file, ``kSmallSize``: a remainder of at most this is not split off (``should_split``).
UNSPLIT_BYTES = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """What one kind of device allocates beyond the tensors that the program names.

    Attributes:
        block_bytes: every allocation on the device is rounded up to a multiple of this.
        whole_segments: what is left of a segment that holds one large tensor alone counts with the tensor where torch
            does not split it off (:meth:`rounded`).
        fused_dropout: dropout keeps a mask of one byte per element (aten native_dropout); elsewhere it
            keeps the scaled noise in the input's type (aten dropout, composite form).
        float_norm_statistics: layer norm keeps mean and 1/std in fp32 whatever its input.
        accumulates_in_place: autograd adds the second gradient of a tensor into the first
            (torch/csrc/autograd/input_buffer.cpp). Not while an operator-level counter watches, as
            the CPU measurement does.
        pinned_rounds_to_power_of_two: torch's pinned host allocator does
            (aten/src/ATen/core/CachingHostAllocator.h).
        pins_host_memory: offload buffers are page-locked copies; on the CPU device pinning does nothing.
        foreach_optimizers: torch's optimizers update all parameters at once on accelerators.
        one_pool: device and host are the same memory.
        workspace_bytes: matrix library workspace for each thread that multiplies.
        lt_workspace_bytes: the same for products with a bias added, which cublasLt does.
        multiprocessors: what sums and norms are spread over (``dsplan.reductions``); None: their workspaces are
            left out.
        zero3_linear: linear layers are stage 3's own (deepspeed/runtime/zero/linear.py): the bias is added
            apart, and the weight's gradient is no view.
        fused_attention: kernel that torch picks for scaled_dot_product_attention in half precision.
    """

    block_bytes: int = CUDA_BLOCK_BYTES
    whole_segments: bool = True
    fused_dropout: bool = True
    float_norm_statistics: bool = True
    accumulates_in_place: bool = True
    pinned_rounds_to_power_of_two: bool = True
    pins_host_memory: bool = True
    foreach_optimizers: bool = True
    one_pool: bool = False
    workspace_bytes: int = 0
    lt_workspace_bytes: int = 0
    multiprocessors: Multiprocessors | None = None
    zero3_linear: bool = False
    fused_attention: str = FLASH

    def of_programs(self, *, zero3_linear: bool) -> Kernels:
        """What a model's programs depend on, the workspaces left out, which the walk takes: devices share programs."""
        if type(self) is not Kernels:
            return replace(self, zero3_linear=True) if zero3_linear else self
        return _of_programs(self, zero3_linear)

    def rounded(self, size: int) -> int:
        """What a request of ``size`` bytes counts as allocated, in bytes.

        A multiple of ``block_bytes``; of 10 MiB or more, in a segment of its own, which is a multiple of 2 MiB
        (c10/cuda/CUDACachingAllocator.cpp: round_size, get_allocation_size, should_split). Which block a smaller
        tensor gets, or a large one once larger blocks have been freed, only a replay of the allocator can say: there
        a tensor counts up to 1 MiB more (smaller ones) or less (large ones) than this.
        """
        block = size + -size % self.block_bytes
        if block < OWN_SEGMENT_BYTES or not self.whole_segments:
            return block
        rest = -block % SEGMENT_STEP_BYTES  # of the segment
        return block + rest if rest <= UNSPLIT_BYTES else block

    def attention_kernel(self, *, element_bytes: int, dropout: float) -> str:
        """The kernel behind ``F.scaled_dot_product_attention(is_causal=True)``.

        CUDA: flash needs fp16 or bf16, memory-efficient takes fp32 too
        (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). CPU: flash without dropout, else math
        (aten/src/ATen/native/transformers/sdp_utils_cpp.cpp).
        """
        if self.fused_attention == CPU_FLASH:
            return CPU_FLASH if dropout == 0 else MATH
        if self.fused_attention == FLASH and element_bytes == 4:
            return EFFICIENT
        return self.fused_attention


@lru_cache(maxsize=64)
def kernels_of(accelerator: Accelerator | None) -> Kernels:
    """The kernels of a catalogued device; without one, those of a CUDA device of this generation."""
    if accelerator is None:
        return Kernels(
            workspace_bytes=_DEFAULT_WORKSPACE,
            lt_workspace_bytes=_LT_WORKSPACE,
            multiprocessors=_DEFAULT_MULTIPROCESSORS,
        )
    if accelerator.kind == "cpu":
        return Kernels(
            block_bytes=1,
            whole_segments=False,
            fused_dropout=False,
            float_norm_statistics=False,
            accumulates_in_place=False,
            pinned_rounds_to_power_of_two=False,
            pins_host_memory=False,
            foreach_optimizers=False,
            one_pool=True,
            fused_attention=CPU_FLASH,
        )
    capability = tuple(int(part) for part in (accelerator.compute_capability or "8.0").split("."))
    return Kernels(
        workspace_bytes=accelerator.cublas_workspace_bytes,
        lt_workspace_bytes=_LT_WORKSPACE if accelerator.kind == "cuda" else 0,
        whole_segments=accelerator.kind != "hpu",
        pinned_rounds_to_power_of_two=accelerator.kind != "hpu",
        multiprocessors=_multiprocessors(accelerator),
        fused_attention=FLASH if capability >= (8, 0) else EFFICIENT,
    )


def _multiprocessors(accelerator: Accelerator) -> Multiprocessors | None:
    threads = _THREADS.get(accelerator.compute_capability or "")
    return Multiprocessors(accelerator.multiprocessors, threads) if accelerator.multiprocessors and threads else None


#: CUDA C++ Programming Guide, technical specifications by compute capability: threads of a multiprocessor.
_THREADS = {"7.0": 2048, "7.5": 1024, "8.0": 2048, "8.6": 1536, "8.9": 1536, "9.0": 2048, "10.0": 2048, "12.0": 1536}
#: An H100's, or an H200's.
_DEFAULT_MULTIPROCESSORS = Multiprocessors(132, 2048)


@lru_cache(maxsize=64)
def _of_programs(kernels: Kernels, zero3_linear: bool) -> Kernels:
    return replace(kernels, workspace_bytes=0, lt_workspace_bytes=0, zero3_linear=zero3_linear)


#: aten/src/ATen/cuda/CUDABlas / CublasHandlePool.cpp: 32 MiB on compute capability 9.0, the largest of all.
_DEFAULT_WORKSPACE = 32 * 1024**2
#: The same file, parseCUDABlasLtWorkspaceSize: 1 MiB on every CUDA device.
_LT_WORKSPACE = 1024**2

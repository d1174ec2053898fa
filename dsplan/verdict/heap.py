"""Heap: what malloc may keep of a model that was built on the host and has moved to the device.

glibc maps a large block apart and gives it back when it is freed; a smaller one comes from its heap, which shrinks from
its top only. From which size on is dynamic (malloc/malloc.c, M_MMAP_THRESHOLD in mallopt(3)): each block that was
mapped apart and is freed raises the threshold to its own size, 32 MiB at most (DEFAULT_MMAP_THRESHOLD_MAX). DeepSpeed
casts a model parameter by parameter (runtime/engine.py _configure_distributed_model, torch.nn.Module._apply): every
fp32 weight that goes raises the threshold, so that the half-precision copies of the next ones lie on the heap. When
they have moved, one small object above them keeps them all, or none does: what is said here is the most.
"""

from __future__ import annotations

from functools import lru_cache

from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import MIB

#: malloc/malloc.c DEFAULT_MMAP_THRESHOLD_MAX where a long has 64 bits: larger blocks are never on the heap.
LARGEST_THRESHOLD = 32 * MIB
#: The threshold once torch 2.13 and DeepSpeed 0.19.8 are imported, whose own blocks have raised it to 1.9 MiB.
IMPORTED_THRESHOLD = 2 * MIB
_FP32 = 4


def kept_by_malloc(model: ModelShape, plan: Plan, *, threshold: int | None = None) -> int:
    """The most that a rank's malloc keeps after the model has moved, in bytes.

    Args:
        threshold: as MALLOC_MMAP_THRESHOLD_ fixes it, in bytes; None: it moves.
    """
    if plan.zero.builds_on_device:
        return 0
    return _heap_peak(model, plan.workload.element_bytes, threshold)


@lru_cache(maxsize=256)
def _heap_peak(model: ModelShape, element_bytes: int, fixed: int | None) -> int:
    """The most that is on the heap at once while the model is built, cast and moved."""
    threshold = IMPORTED_THRESHOLD if fixed is None else fixed
    mask = _FP32 * model.max_position_embeddings**2 if model.has_mask_buffer else 0
    if fixed is None and mask <= LARGEST_THRESHOLD:  # each block makes its mask of ones, which go (mingpt/model.py)
        threshold = max(threshold, mask)
    heap = model.num_layers * mask if mask <= threshold else 0
    sizes = [parameter.numel for parameter in model.parameters]
    built_on_heap = [_FP32 * numel <= threshold for numel in sizes]
    heap += sum(_FP32 * numel for numel, on_heap in zip(sizes, built_on_heap, strict=True) if on_heap)
    highest = heap
    if element_bytes == _FP32:
        return highest
    for numel, on_heap in zip(sizes, built_on_heap, strict=True):
        cast, whole = element_bytes * numel, _FP32 * numel
        if cast <= threshold:
            heap += cast
            highest = max(highest, heap)
        if on_heap:
            heap -= whole
        elif fixed is None and whole <= LARGEST_THRESHOLD:
            threshold = max(threshold, whole)
    return highest

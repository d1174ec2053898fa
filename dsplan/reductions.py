"""Reductions: what a sum, a norm or a mean takes of a CUDA device beside its result, while it runs.

Where few outputs are made of many inputs, torch's kernel splits the inputs of one output over several blocks of
threads, which leave their parts in device memory: a buffer, and a semaphore for each row of blocks, both from the
caching allocator and given back when the kernel has been launched (aten/src/ATen/native/cuda/Reduce.cuh:
setReduceConfig, gpu_reduce_kernel). The gradient of a bias is such a sum: over 2,048 tokens of a width of 3,072 the
buffer is 48 MiB on an H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from dsplan.units import ceil_div

WARP = 32
MAX_THREADS = 512
VECTOR = 4
MIN_VALUES_PER_THREAD = 16
MAX_VALUES_PER_THREAD = 256
#: A kernel's offsets are 32 bits wide; a larger tensor is reduced in parts (TensorIterator.cpp).
MAX_OFFSET = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Multiprocessors:
    """A device's: how many, and the threads that each has at most (CUDA C++ Programming Guide, technical data)."""

    count: int
    threads: int


class Dimension(NamedTuple):
    """One dimension of what is reduced: elements, their distance in elements, and whether it goes."""

    size: int
    stride: int
    is_reduced: bool


class Workspace(NamedTuple):
    """Bytes that are requested one after the other and live at the same time."""

    buffer_bytes: int
    semaphore_bytes: int


def reduction_workspaces(
    shape: Sequence[int],
    strides: Sequence[int],
    reduced: Sequence[int],
    device: Multiprocessors,
    *,
    element_bytes: int,
    accumulator_bytes: int = 4,
    input_vector: int = VECTOR,
) -> list[Workspace]:
    """What reducing the dimensions ``reduced`` of a tensor takes, in order; of a tensor that is too large for one
    kernel, part by part. Empty where the parts of an output stay within a block of threads.

    Args:
        strides: in elements, as torch has them.
        element_bytes: of the input's type.
        accumulator_bytes: of the type in which it is summed: 4 for half precision and fp32.
        input_vector: elements that a thread loads at once (ReduceSumProdKernel.cu: 8 for sums of half precision).
    """
    gone = set(reduced)
    dimensions = [
        Dimension(size, stride, index in gone)
        for index, (size, stride) in enumerate(zip(shape, strides, strict=True))
        if size != 1
    ]
    parts = _parts(_coalesced(dimensions), element_bytes)
    found = [_workspace(tuple(part), device, accumulator_bytes, input_vector) for part in parts]
    return [each for each in found if each is not None]


def column_sum_workspace(rows: int, columns: int, device: Multiprocessors, *, element_bytes: int) -> Workspace | None:
    """What ``x.sum(0)`` of a contiguous matrix takes: a bias' gradient. None: nothing."""
    found = reduction_workspaces((rows, columns), (columns, 1), (0,), device, element_bytes=element_bytes)
    return max(found, default=None)


def _coalesced(dimensions: list[Dimension]) -> list[Dimension]:
    """TensorIterator's order, reduced dimensions first and each sort by stride, and neighbours made one."""
    ordered = sorted(dimensions, key=lambda each: (not each.is_reduced, each.stride))
    merged: list[Dimension] = []
    for each in ordered:
        last = merged[-1] if merged else None
        if last is not None and last.is_reduced == each.is_reduced and last.size * last.stride == each.stride:
            merged[-1] = Dimension(last.size * each.size, last.stride, last.is_reduced)
        else:
            merged.append(each)
    return merged


def _parts(dimensions: list[Dimension], element_bytes: int) -> list[list[Dimension]]:
    """TensorIterator::split until every offset fits into 32 bits: the dimension of the largest extent in halves."""
    extents = [(each.size - 1) * each.stride * element_bytes for each in dimensions]
    if 1 + sum(extents) <= MAX_OFFSET:
        return [dimensions]
    at = max(range(len(extents)), key=lambda index: (extents[index], index))
    size = dimensions[at].size
    halves = (size // 2, size - size // 2)
    return [
        part
        for half in halves
        for part in _parts([*dimensions[:at], dimensions[at]._replace(size=half), *dimensions[at + 1 :]], element_bytes)
    ]


@lru_cache(maxsize=4096)
def _workspace(
    dimensions: tuple[Dimension, ...],
    device: Multiprocessors,
    accumulator_bytes: int,
    input_vector: int,
) -> Workspace | None:
    """setReduceConfig, and the two sizes that follow from it."""
    reduced = [each for each in dimensions if each.is_reduced]
    kept = [each for each in dimensions if not each.is_reduced]
    inputs, outputs = _product(reduced), _product(kept)
    along_fastest = not kept or not reduced or reduced[0].stride < kept[0].stride
    fastest = reduced[0].stride if reduced and along_fastest else kept[0].stride if kept else 1
    dim0, dim1 = (inputs, outputs) if along_fastest else (outputs, inputs)
    vector = 1
    if fastest == 1 and along_fastest and dim0 >= 128 and len(reduced) == 1:
        dim0 //= input_vector
    elif fastest == 1 and not along_fastest:
        vector = _output_vector(dimensions, len(reduced))
        dim0 //= vector
    width, height = _block(dim0, dim1, MAX_THREADS // vector)
    step_input, step_output = (width, 1) if along_fastest else (1, width)
    splits_across_warps = ceil_div(inputs, step_input) >= min(height * 16, MAX_VALUES_PER_THREAD)
    if splits_across_warps:
        step_input *= height
    else:
        step_output *= height
    grid = ceil_div(outputs // vector, step_output)
    values = ceil_div(inputs, step_input)
    target = device.count * (device.threads // (width * height))
    if not splits_across_warps or values < MAX_VALUES_PER_THREAD or grid > target:
        return None
    blocks = max(
        min(ceil_div(target, grid), ceil_div(values, MIN_VALUES_PER_THREAD)), ceil_div(values, MAX_VALUES_PER_THREAD)
    )
    if blocks <= 1:
        return None
    size = accumulator_bytes * outputs * blocks
    return Workspace(size if along_fastest else size * width * vector, 4 * grid)


def _block(dim0: int, dim1: int, most: int) -> tuple[int, int]:
    """ReduceConfig::set_block_dimension: threads along the fastest dimension, and across."""
    first = _last_power_of_two(dim0) if dim0 < most else most
    second = _last_power_of_two(dim1) if dim1 < most else most
    width = min(first, WARP)
    height = min(second, most // width)
    return min(first, most // height), height


def _output_vector(dimensions: Sequence[Dimension], num_reduced: int) -> int:
    """get_output_vec_size: outputs that a thread makes; the input starts at a multiple of it."""
    vector = VECTOR
    numbers = [dimensions[num_reduced].size]
    numbers += [each.stride for index, each in enumerate(dimensions) if index != num_reduced]
    for number in numbers:
        while number % vector:
            vector //= 2
    return vector


def _last_power_of_two(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


def _product(dimensions: Sequence[Dimension]) -> int:
    product = 1
    for each in dimensions:
        product *= each.size
    return product

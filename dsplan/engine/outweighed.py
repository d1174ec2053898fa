"""Ranks of stage 2 that no phase is worst on, whatever the batch: another is at every moment as high, or higher."""

from __future__ import annotations

from dsplan.engine.base import Engine
from dsplan.engine.stage12 import Stage12

STAGE = 2


def outweighs(one: Engine, other: Engine, first: int) -> bool:
    """Whether the level of rank ``one`` is at no moment below that of ``other``, of the same plan; False: not told.

    Two ranks differ in their partition of gradients, in the norm of their slices, in the flat copy of their gradients,
    and in which part of a gradient larger than a bucket is theirs (:mod:`dsplan.engine.stage12`):

    - The partition comes with the first reduction that has a gradient of the rank's, and stays until the step. ``one``
      owns the gradient that comes first of all, so its partition comes with the first reduction, before any other of
      that reduction; where it has as many elements, it adds at every moment as much as the other's.
    - The norm and the flat copy are of the largest slice and of P elements. In fp32 the partition lasts through the
      update where flattening makes a view, else the flat copy does: there both have to do the same.
    - A larger gradient is alone in its bucket. Every rank reduces the largest group of its slices, or one as large;
      the group that is the rank's own adds to that only where it has several slices, and the largest has one.

    Args:
        first: index of the parameter whose gradient comes first in a backward pass.
    """
    if type(one) is not Stage12 or type(other) is not Stage12:
        return False
    zero, mine, its = one.zero, one.partition, other.partition
    if zero.stage != STAGE or not one.contiguous or one.offload or first not in mine.members:
        return False
    flattens_as_much = mine.is_one_tensor == its.is_one_tensor or (its.is_one_tensor and one.e != 4)
    if its.owned_elements > mine.owned_elements or its.largest_slice > mine.largest_slice or not flattens_as_much:
        return False
    oversized = [index for index, numel in zip(its.indices, its.numels, strict=True) if numel > zero.reduce_bucket_size]
    return all(_is_covered(other, index) for index in oversized)


def _is_covered(engine: Stage12, index: int) -> bool:
    """Whether the rank's own part of a gradient larger than a bucket takes no more than the largest group of slices."""
    begin = engine.offset(index)
    groups = engine.groups_of_oversized(index, begin, begin + engine.sizes[index])
    _, slices, _ = max(groups)
    return slices > 1 or all(several == 1 for _, several, own in groups if own)

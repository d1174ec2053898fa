"""Partition: how ZeRO divides the parameters among the ranks.

Legend: Ψ parameters, N ranks, n elements of one parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dsplan.model import ModelShape
from dsplan.units import round_up

#: stage_1_and_2.py ``nccl_start_alignment_factor``: flat buffers are padded to a multiple of 2·N elements.
ALIGNMENT_FACTOR = 2


@dataclass(frozen=True, slots=True)
class FlatPartition:
    """Stages 1 and 2: one flat buffer cut into N equal ranges; ``owned`` are one rank's parameters.

    Attributes:
        padded: Ψp, the elements of the flat buffer with its padding.
        size: P = Ψp / N, the elements that one rank updates.
        owned: index and elements of each parameter that overlaps the rank's range, whole.
        slices: elements of each owned parameter that lie in the range.
    """

    padded: int
    size: int
    owned: tuple[tuple[int, int], ...]
    slices: tuple[int, ...]

    @property
    def owned_elements(self) -> int:
        """ΣG: the owned parameters' elements, edges counted whole."""
        return sum(numel for _, numel in self.owned)


@lru_cache(maxsize=64)
def parameter_sizes(model: ModelShape) -> tuple[int, ...]:
    """Elements of every parameter, in the order of ``nn.Module.parameters()``."""
    return tuple(parameter.numel for parameter in model.parameters)


def padded_elements(model: ModelShape, world_size: int) -> int:
    """Ψp: Ψ rounded up to a multiple of 2·N (stage_1_and_2.py flatten_dense_tensors_aligned)."""
    return round_up(model.num_parameters, ALIGNMENT_FACTOR * world_size)


def flat_order(model: ModelShape, world_size: int, *, round_robin: bool) -> list[int]:
    """Parameter indices in the order of the flat buffer (stage_1_and_2.py _round_robin_reorder)."""
    count = len(parameter_sizes(model))
    if not round_robin:
        return list(range(count))
    return [index for first in range(world_size) for index in range(first, count, world_size)]


@lru_cache(maxsize=256)
def flat_offsets(model: ModelShape, world_size: int, round_robin: bool = False) -> tuple[int, ...]:
    """Where each parameter starts in the flat buffer, in elements."""
    sizes = parameter_sizes(model)
    offsets = [0] * len(sizes)
    position = 0
    for index in flat_order(model, world_size, round_robin=round_robin):
        offsets[index] = position
        position += sizes[index]
    return tuple(offsets)


@lru_cache(maxsize=256)
def worst_ranks(model: ModelShape, world_size: int, round_robin: bool = False) -> tuple[int, ...]:
    """The ranks that can be the worst: the one with most owned elements, and those at the model's ends.

    The last rank owns the last layers, whose gradients stage 2 reduces while most activations still live;
    the first owns the first ones, for which stage 1 allocates its partition while every gradient still
    lives; and the embedding's and the head's gradients may be larger than the bucket.
    """
    sizes = parameter_sizes(model)
    size = padded_elements(model, world_size) // world_size
    totals: dict[int, int] = {}
    offset = 0
    head: tuple[int, int] = (0, 0)
    for index in flat_order(model, world_size, round_robin=round_robin):
        numel = sizes[index]
        end = offset + numel
        first, last = offset // size, (end - 1) // size
        if index == len(sizes) - 1:
            head = first, last
        # Ranks in the middle of one huge parameter all look alike; one of them is enough.
        for owner in {first, min(first + 1, last), last}:
            totals[owner] = totals.get(owner, 0) + numel
        offset = end
    most = max(totals, key=lambda rank: (totals[rank], rank))
    return tuple(dict.fromkeys((max(totals), most, 0, *head)))


@lru_cache(maxsize=256)
def flat_partition(model: ModelShape, world_size: int, rank: int, round_robin: bool = False) -> FlatPartition:
    """The partition of one rank; the last ranks of a small model may hold padding alone.

    Source: stage_1_and_2.py get_partition_info. A parameter belongs to every rank whose range it
    touches, so its whole gradient is kept by each of them.
    """
    sizes, offsets = parameter_sizes(model), flat_offsets(model, world_size, round_robin)
    padded = padded_elements(model, world_size)
    size = padded // world_size
    begin, end = rank * size, (rank + 1) * size
    owned = [
        (index, sizes[index], min(offsets[index] + sizes[index], end) - max(offsets[index], begin))
        for index in flat_order(model, world_size, round_robin=round_robin)
        if offsets[index] < end and offsets[index] + sizes[index] > begin
    ]
    return FlatPartition(
        padded=padded,
        size=size,
        owned=tuple((index, numel) for index, numel, _ in owned),
        slices=tuple(overlap for _, _, overlap in owned),
    )


def flat_partitions(model: ModelShape, world_size: int, round_robin: bool = False) -> tuple[FlatPartition, ...]:
    """The partitions of :func:`worst_ranks`."""
    ranks = worst_ranks(model, world_size, round_robin)
    return tuple(flat_partition(model, world_size, rank, round_robin) for rank in ranks)

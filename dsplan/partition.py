"""Partition: how ZeRO divides the parameters among the ranks.

Legend: Ψ parameters, N ranks, n elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby

from dsplan.model import ModelShape, Parameter
from dsplan.sizes import Sizes
from dsplan.units import ceil_div, round_up

#: So many parameters a rank make it worth while to go rank by rank.
FEW_RANKS = 12
#: stage_1_and_2.py ``nccl_start_alignment_factor``: flat buffers are padded to a multiple of 2·N elements.
ALIGNMENT_FACTOR = 2


@dataclass(eq=False)
class FlatPartition:
    """Stages 1 and 2: one flat buffer cut into N equal ranges; what lies in one rank's.

    Attributes:
        padded: Ψp, the elements of the flat buffer with its padding.
        size: P = Ψp / N, the elements that one rank updates.
        indices: of the parameters that overlap the rank's range, in the buffer's order.
        numels: elements of each of them, whole.
        slices: elements of each of them that lie in the range.
        owned_elements: ΣG: of all of them, edges counted whole.
        largest_slice: S_max: the largest of ``slices``; 0 where the range is padding alone.
        members: ``indices``, to look one up in.
    """

    padded: int
    size: int
    indices: Sequence[int]
    numels: tuple[int, ...]
    slices: tuple[int, ...]
    owned_elements: int = field(init=False)
    largest_slice: int = field(init=False)
    members: Container[int] = field(init=False)

    def __post_init__(self) -> None:
        self.owned_elements = sum(self.numels)
        self.largest_slice = max(self.slices, default=0)
        self.members = self.indices if isinstance(self.indices, range) else frozenset(self.indices)

    @property
    def is_one_tensor(self) -> bool:
        """Whether one parameter, or a part of it, fills the range: flattening its gradients makes a view."""
        return len(self.indices) == 1 and self.slices[0] == self.size

    @cached_property
    def owned(self) -> tuple[tuple[int, int], ...]:
        """Index and elements of each parameter that overlaps the rank's range, whole."""
        return tuple(zip(self.indices, self.numels, strict=True))

    @cached_property
    def slice_of(self) -> dict[int, int]:
        """Elements that lie in the range, by the index of each owned parameter."""
        return dict(zip(self.indices, self.slices, strict=True))


@dataclass(frozen=True)
class FlatGroup:
    """One of the optimizer's parameter groups, which stages 1 and 2 flatten and cut each by itself.

    Attributes:
        order: index of each parameter among the model's, as the optimizer has them.
        numels: their elements, in that order.
    """

    order: tuple[int, ...]
    numels: tuple[int, ...]

    def padded(self, world_size: int) -> int:
        """Elements of the flat buffer: a multiple of 2·N (stage_1_and_2.py flatten_dense_tensors_aligned)."""
        return round_up(sum(self.numels), ALIGNMENT_FACTOR * world_size)

    def offsets(self, world_size: int, *, round_robin: bool) -> dict[int, int]:
        """Where each parameter, by its index, starts in the flat buffer, in elements and in the buffer's order."""
        found, position = {}, 0
        for place in _places(len(self.order), world_size, round_robin=round_robin):
            found[self.order[place]] = position
            position += self.numels[place]
        return found

    def partition(self, world_size: int, rank: int, *, round_robin: bool) -> FlatPartition:
        """The partition of one rank (get_partition_info), which may hold padding alone."""
        padded = self.padded(world_size)
        size = padded // world_size
        begin, end = rank * size, (rank + 1) * size
        numels = dict(zip(self.order, self.numels, strict=True))
        offsets = self.offsets(world_size, round_robin=round_robin)
        owned = tuple([i for i, at in offsets.items() if at < end and at + numels[i] > begin])
        return FlatPartition(
            padded=padded,
            size=size,
            indices=owned,
            numels=tuple([numels[i] for i in owned]),
            slices=tuple([min(offsets[i] + numels[i], end) - max(offsets[i], begin) for i in owned]),
        )

    def worst_ranks(self, world_size: int, *, round_robin: bool) -> tuple[int, ...]:
        """As :func:`worst_ranks` of the group: the last that owns anything, the one that owns most, and the first."""
        places = _places(len(self.order), world_size, round_robin=round_robin)
        found = _last_and_most([self.numels[place] for place in places], self.padded(world_size) // world_size)
        return (*found, 0)


@lru_cache(maxsize=64)
def parameter_sizes(model: ModelShape) -> Sizes:
    """Elements of every parameter, in the order of ``nn.Module.parameters()``."""
    if model.decoder is None:
        blocks = [(_numels(model.block_parameters), model.num_layers)]
    else:
        kinds = [_numels(kind) for kind in model.decoder.kinds]
        blocks = [(kinds[kind], len(tuple(alike))) for kind, alike in groupby(model.decoder.layers)]
    return Sizes.of([(_numels(model.embedding_parameters), 1), *blocks, (_numels(model.head_parameters), 1)])


def _numels(parameters: tuple[Parameter, ...]) -> tuple[int, ...]:
    return tuple([parameter.numel for parameter in parameters])


def padded_elements(model: ModelShape, world_size: int) -> int:
    """Ψp: Ψ rounded up to a multiple of 2·N (stage_1_and_2.py flatten_dense_tensors_aligned)."""
    return round_up(parameter_sizes(model).sum, ALIGNMENT_FACTOR * world_size)


def flat_order(model: ModelShape, world_size: int, *, round_robin: bool) -> list[int]:
    """Parameter indices in the order of the flat buffer (stage_1_and_2.py _round_robin_reorder)."""
    return _places(len(parameter_sizes(model)), world_size, round_robin=round_robin)


def _places(count: int, world_size: int, *, round_robin: bool) -> list[int]:
    """Of ``count`` parameters those of the flat buffer, first to last."""
    if not round_robin:
        return list(range(count))
    return [place for first in range(world_size) for place in range(first, count, world_size)]


@lru_cache(maxsize=256)
def flat_offsets(model: ModelShape, world_size: int, round_robin: bool = False) -> Callable[[int], int]:
    """Where a parameter, by its index, starts in the flat buffer, in elements."""
    sizes = parameter_sizes(model)
    if not round_robin:
        return sizes.begin
    offsets = [0] * len(sizes)
    position = 0
    for index in flat_order(model, world_size, round_robin=round_robin):
        offsets[index] = position
        position += sizes[index]
    return offsets.__getitem__


@lru_cache(maxsize=256)
def worst_ranks(model: ModelShape, world_size: int, round_robin: bool = False) -> tuple[int, ...]:
    """The ranks that can be the worst: the one with most owned elements, and those at the model's ends.

    The last rank owns the last layers, whose gradients stage 2 reduces while most activations still live;
    the first owns the first ones, for which stage 1 allocates its partition while every gradient still
    lives; and the embedding's and the head's gradients may be larger than the bucket.
    """
    sizes = parameter_sizes(model)
    size = padded_elements(model, world_size) // world_size
    if round_robin:
        last, most = _last_and_most([sizes[i] for i in flat_order(model, world_size, round_robin=True)], size)
    elif _ends_are_the_most(sizes, size):
        last, most = _last_and_most_of(sizes, size, _ranks_at_the_ends(sizes, size))
    elif world_size > len(sizes) // FEW_RANKS:
        last, most = _last_and_most(sizes, size)
    else:
        last, most = _last_and_most_of(sizes, size, range(ceil_div(sizes.sum, size)))
    begin = flat_offsets(model, world_size, round_robin)(len(sizes) - 1)
    head = begin // size, (begin + sizes[-1] - 1) // size
    return tuple(dict.fromkeys((last, most, 0, *head)))


def _ends_are_the_most(sizes: Sizes, size: int) -> bool:
    """Whether a rank that has nothing of the embeddings and the head cannot be the one that owns most.

    Beside the ``size`` elements of its range it owns the rest of the parameters at its two edges, which are of blocks;
    a rank that has anything of the largest parameter of the ends owns all of that.
    """
    (first, _), *blocks, (last, _) = sizes.runs
    inner = max([max(each) for each, times in blocks if each and times], default=0)
    return max((*first, *last), default=0) >= size + 2 * inner


def _ranks_at_the_ends(sizes: Sizes, size: int) -> list[int]:
    """The ranks that have something of the embeddings or the head; of those within one parameter the first."""
    (first, _), *_, (last, _) = sizes.runs
    found: set[int] = set()
    for index in (*range(len(first)), *range(len(sizes) - len(last), len(sizes))):
        begin = sizes.begin(index)
        lowest, highest = begin // size, (begin + sizes[index] - 1) // size
        found.update((lowest, min(lowest + 1, highest), highest))
    return sorted(found)


def _last_and_most(sizes: Iterable[int], size: int) -> tuple[int, int]:
    """The last rank that owns anything, and the one that owns most elements, of several the last.

    ``sizes`` in the order of the flat buffer. Ranks in the middle of one huge parameter all look alike; the first of
    them stands for them.
    """
    end = current = held = most = highest = 0  # held: of the rank ``current``, so far
    beyond = size  # where the range of ``current`` ends
    for numel in sizes:
        begin = end
        end += numel
        if end <= beyond:
            held += numel
            continue
        first, last = current, (end - 1) // size
        if begin < beyond:
            held += numel
        else:
            first += 1
        if held >= highest:
            highest, most = held, current
        if first + 1 < last and numel >= highest:
            highest, most = numel, first + 1
        current, held, beyond = last, numel, (last + 1) * size
    return current, current if held >= highest else most


def _last_and_most_of(sizes: Sizes, size: int, ranks: Sequence[int]) -> tuple[int, int]:
    """The same of ``ranks`` alone, rank by rank, which is sooner done where many parameters are whole in a rank.

    Each of ``ranks`` owns something.
    """
    highest = most = 0
    span = lru_cache(maxsize=2)(sizes.span)  # the end of a rank is the begin of the next
    for rank in ranks:
        _, begin, first_end = span(rank * size)
        beyond = (rank + 1) * size
        _, last_begin, end = span(beyond)
        if last_begin == beyond:
            end = beyond
        in_the_middle = first_end == end and begin // size + 1 < rank < (end - 1) // size
        if not in_the_middle and end - begin >= highest:
            highest, most = end - begin, rank
    return ranks[-1], most


@lru_cache(maxsize=256)
def flat_partition(model: ModelShape, world_size: int, rank: int, round_robin: bool = False) -> FlatPartition:
    """The partition of one rank; the last ranks of a small model may hold padding alone.

    Source: stage_1_and_2.py get_partition_info. A parameter belongs to every rank whose range it
    touches, so its whole gradient is kept by each of them.
    """
    sizes = parameter_sizes(model)
    padded = padded_elements(model, world_size)
    size = padded // world_size
    begin, end = rank * size, (rank + 1) * size
    owned: Sequence[int]
    if round_robin:
        order, offset = flat_order(model, world_size, round_robin=True), flat_offsets(model, world_size, True)
        owned = tuple([i for i in order if offset(i) < end and offset(i) + sizes[i] > begin])
        numels = tuple([sizes[i] for i in owned])
        slices = [min(offset(i) + sizes[i], end) - max(offset(i), begin) for i in owned]
    else:  # those in the middle are whole in the range
        first, before, _ = sizes.span(begin)
        last, _, after = sizes.span(min(end, sizes.sum) - 1)
        owned = range(first, last + 1)
        numels = sizes[first : last + 1]
        slices = list(numels)
        if slices:
            slices[0] -= begin - before
            slices[-1] -= max(after - end, 0)
    return FlatPartition(padded=padded, size=size, indices=owned, numels=numels, slices=tuple(slices))


def flat_partitions(model: ModelShape, world_size: int, round_robin: bool = False) -> tuple[FlatPartition, ...]:
    """The partitions of :func:`worst_ranks`."""
    ranks = worst_ranks(model, world_size, round_robin)
    return tuple(flat_partition(model, world_size, rank, round_robin) for rank in ranks)

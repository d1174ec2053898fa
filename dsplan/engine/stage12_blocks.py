"""Stages 1 and 2, block after block: of a row of alike blocks, each kind of bucket is reduced once.

The rules are those of :mod:`dsplan.engine.stage12`, whose functions are called for one bucket of each kind, for the
first, and for those in which the rank's own gradients change something.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from dsplan.engine.base import Engine, Run
from dsplan.engine.reduce_buckets import BlockBuckets, Bucket, followed
from dsplan.engine.stretches import NOTHING, Effect, Runs, first_of_block
from dsplan.partition import FlatPartition
from dsplan.tape import GRADIENT
from dsplan.zero import ZeroConfig


class Together(NamedTuple):
    """What a row of blocks does on every rank.

    Attributes:
        buckets: that its gradients empty.
        first: what the reduction of the first bucket does, which has gradients from before in it.
        kept: what is done at each gradient of a block that empties no bucket, and after the last.
    """

    buckets: BlockBuckets
    first: Effect
    kept: tuple[Effect, ...]


class Emptied(NamedTuple):
    """What a row of blocks does on this rank, and how it leaves the engine.

    Attributes:
        special: what the reduction of those buckets does that are not like their kind.
        left: the bucket that is left: its gradients, their elements, and what they span of the flat buffer.
        partition_exists: whether the rank's partition of gradients does then.
    """

    together: Together
    special: dict[int, Effect]
    left: tuple[tuple[int, ...], int, int, int]
    partition_exists: bool


class BlocksAtOnce(Engine):
    """The part of an engine of stage 1 or 2 that takes blocks together; what it works on is the engine's."""

    #: Whether the class itself, and not one that it is made of, has rules by which blocks can be taken together.
    takes_blocks_at_once = False
    zero: ZeroConfig
    partition: FlatPartition
    #: Where a parameter, by its index, is in the flat buffer of its group.
    offset: Callable[[int], int]
    offload: bool
    accumulates: bool
    contiguous: bool
    reduces_in_hooks: bool
    buckets_exist: bool
    gradient_partition_exists: bool
    accumulated_partition_exists: bool
    host_accumulation_exists: bool
    leftovers: list[int]
    reduced: list[int]
    fresh: list[int]
    kept: list[int]
    bucket: list[int]
    bucket_elements: int
    bucket_begin: int
    bucket_end: int
    oversized: int | None
    #: What blocks have emptied before, by all that it depends on but the run.
    emptied: dict[tuple[object, ...], Emptied]

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        #: What blocks do on every rank, by all that it depends on but the plan; all ranks have the same one.
        self.together: dict[tuple[object, ...], Together | None] = {}

    def _partition(self) -> None:
        raise NotImplementedError

    def _partition_of(self, index: int | None) -> FlatPartition:
        raise NotImplementedError

    def _owns(self, index: int) -> bool:
        """Whether a parameter overlaps the rank's range."""
        return index in self._partition_of(index).members

    def _slice(self, index: int) -> int:
        """Elements of an owned parameter that lie in the rank's range."""
        return self._partition_of(index).slice_of[index]

    def _begin_reducing(self) -> None:
        """Nothing has been reduced yet."""
        raise NotImplementedError

    def _empty_bucket(self) -> None:
        raise NotImplementedError

    def _reduce_into_bucket(self, index: int) -> None:
        raise NotImplementedError

    def _reduce_bucket(self) -> None:
        raise NotImplementedError

    def _collective(self) -> None:
        raise NotImplementedError

    def _keep_owned(self, index: int, *, separate: bool) -> None:
        raise NotImplementedError

    @property
    def _at_once(self) -> bool:
        return bool(vars(type(self)).get("takes_blocks_at_once"))

    def begins_again(self) -> bool:
        waiting = self.bucket or self.leftovers or self.reduced or self.fresh or self.kept or 1 in self._held
        exist = self.buckets_exist or self.gradient_partition_exists or self.accumulated_partition_exists
        return self._at_once and not (waiting or exist or self.host_accumulation_exists)

    def of_rank(self, run: Run) -> Engine | None:
        """As the engine's: initialisation asks only for the size of a rank's partition, which all have."""
        if not self._at_once:
            return None
        other = self.copy()
        other.run, other.ledger = run, run.ledger
        other._held = self._held.copy()
        other._partition()
        other._begin_reducing()
        return other

    def _reduce_all(self) -> None:
        """reduce_gradients: every gradient, in the order of the parameters."""
        index, layers = 0, range(self.run.model.num_layers if self.run.model.has_like_blocks else 0)
        while index < len(self.sizes):
            if layers and index == first_of_block(self.run.model, layers[0]):
                if self._reduce_blocks(layers):
                    index = first_of_block(self.run.model, len(layers) + layers[0])
                    layers = layers[:0]
                    continue
                layers = layers[1:]
            self._reduce_into_bucket(index)
            index += 1

    def blocks_at_once(self, layers: range, calls: tuple[tuple[int, int], ...]) -> Runs | None:
        """As the engine's; buckets are reduced a kind at a time."""
        order = tuple([index for kind, index in calls if kind == GRADIENT])
        if not order:
            return super().blocks_at_once(layers, calls)
        if not self._at_once or (self.contiguous and not self.buckets_exist):
            return None
        if not self.reduces_in_hooks or not (self.zero.stage == 2 or self.boundary):
            return self.holding(layers, calls)
        begin = first_of_block(self.run.model, layers[-1])
        held = 1 in self._held[begin : first_of_block(self.run.model, layers[0] + 1)]
        found = None if held else self._empty_in_blocks(layers, order)
        if found is None:
            return None
        buckets, _, kept = found.together
        runs = buckets.of_blocks(kept, found.special)
        if len(order) == len(calls) - 1:
            return runs
        gradients = [place for place, (kind, _) in enumerate(calls) if kind == GRADIENT]
        spread = []
        for count, each in runs:
            at = dict(zip(gradients, each, strict=False))
            spread.append((count, tuple([at.get(place, NOTHING) for place in range(len(calls))])))
        return spread

    def _reduce_blocks(self, layers: range) -> bool:
        """Reduce what ``layers``, all up to the last, have in their order; whether that was possible at once."""
        order = tuple(range(len(self.run.model.block_parameters)))
        found = None if self.ledger.detailed else self._empty_in_blocks(layers, order)
        if found is None:
            return False
        buckets, _, kept = found.together
        self.ledger.rise_and_settle(*buckets.in_a_row(kept, found.special))
        return True

    def _empty_in_blocks(self, layers: range, order: tuple[int, ...]) -> Emptied | None:
        """The buckets that the gradients of ``layers`` empty, arriving in ``order`` in each of them.

        Where the engine is as it was before the same blocks of an earlier micro batch or step, they are what they were.

        Returns:
            What they do, the engine being as after all of them. None: the gradients of the first of these layers have
            to be taken one by one.
        """
        if self.oversized is not None or not self._at_once:
            return None
        if self.offload and self.accumulates and self.zero.stage == 2 and not self.host_accumulation_exists:
            return None  # each makes its place on the host
        exist = self.gradient_partition_exists, self.host_accumulation_exists
        key = (layers, order, *self.bucket, *exist, self.boundary)
        found = self.emptied.get(key)
        if found is None:
            pending = (layers, order, self.bucket_elements, self.bucket_begin, self.bucket_end)
            if pending not in self.together:
                self.together[pending] = self._take_together(layers, order)
            together = self.together[pending]
            if together is None:
                return None
            found = self.emptied[key] = self._empty(layers, order, together)
        bucket, self.bucket_elements, self.bucket_begin, self.bucket_end = found.left
        self.bucket = list(bucket)
        self.gradient_partition_exists = found.partition_exists
        lowest = min(layers[0], layers[-1])
        first, count = first_of_block(self.run.model, lowest), len(layers) * len(order)
        self._held[first : first + count] = bytes(count)
        return found

    def _take_together(self, layers: range, order: tuple[int, ...]) -> Together | None:
        """What does not depend on the rank; None: nothing can be said of all these blocks together."""
        model, limit, rounded = self.run.model, self.zero.reduce_bucket_size, self.run.kernels.rounded
        if not self.blocks_are_alike or not self.contiguous or self.zero.round_robin_gradients:
            return None
        begin, num = first_of_block(model, layers[0]), len(order)
        sizes = self.sizes[begin : begin + num]
        if not order or num != len(model.block_parameters) or max(sizes) > limit:  # no order: no block is trained
            return None
        pending = self.bucket_elements, self.bucket_begin, self.bucket_end
        offsets = [0, *accumulate(sizes)]  # of a block, whose parameters lie one after the other
        buckets = BlockBuckets(
            tuple([sizes[index] for index in order]),
            tuple([offsets[index] for index in order]),
            num_blocks=len(layers),
            onwards=layers.step,
            limit=limit,
            pending=self.bucket_elements,
            base=self.offset(begin),
            partition=self.partition.size,
        )

        def reduce(number: int) -> None:
            self._fill(buckets.bucket(number), *(pending if number == 0 else self._nothing))
            self._collective()

        first = self.ledger.effect(partial(reduce, 0)) if buckets.count else NOTHING
        buckets.find_effects(self.ledger.effect, reduce)
        self.bucket_elements, self.bucket_begin, self.bucket_end = pending
        return Together(buckets, first, (*[(0, -rounded(self.e * sizes[index])) for index in order], NOTHING))

    @property
    def _nothing(self) -> tuple[int, int, int]:
        """Elements of an empty bucket, and what it spans of the flat buffer."""
        return 0, self.partition.padded, 0

    def _fill(self, bucket: Bucket, elements: int, begin: int, end: int) -> None:
        """What the bucket has from blocks, beside so many elements from before."""
        self.bucket_elements = elements + bucket.elements
        self.bucket_begin, self.bucket_end = begin, end
        if bucket.elements:
            self.bucket_begin, self.bucket_end = min(begin, bucket.begin), max(end, bucket.end)

    def _empty(self, layers: range, order: tuple[int, ...], together: Together) -> Emptied:
        """What this rank makes of ``together``: its own gradients go into its partition, or to the host."""
        buckets, part = together.buckets, self.partition
        begin, apart = first_of_block(self.run.model, layers[0]), layers.step * len(order)

        def indices(number: int) -> list[int]:
            before = self.bucket if number == 0 else []
            return before + [begin + block * apart + order[place] for block, place in buckets.gradients(number)]

        special = {0: together.first} if buckets.count else {}
        own = self.run.rank * part.size
        touching = buckets.touching(own, own + part.size)
        if buckets.count and self.bucket_begin < own + part.size and own < self.bucket_end:
            touching = [0, *touching]  # by what was in it before
        for number in touching:
            if self.gradient_partition_exists and not self.offload:
                break
            kept = self.ledger.effect(partial(self._keep, indices(number)))
            special[number] = followed(special.get(number) or buckets.effect_of(number), kept)
        left = tuple(indices(buckets.count))
        before = self._nothing if buckets.count else (self.bucket_elements, self.bucket_begin, self.bucket_end)
        self._fill(buckets.bucket(buckets.count), *before)
        span = self.bucket_elements, self.bucket_begin, self.bucket_end
        return Emptied(together, special, (left, *span), self.gradient_partition_exists)

    def _keep(self, indices: list[int]) -> None:
        """Of a reduced bucket's gradients the rank's own."""
        for index in indices:
            if self._owns(index):
                self._keep_owned(index, separate=False)
                if not self.offload:  # now there is the partition that has all
                    return

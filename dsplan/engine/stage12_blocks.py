"""Stages 1 and 2, block after block: of a row of alike blocks, each kind of bucket is reduced once.

The rules are those of :mod:`dsplan.engine.stage12`, whose functions are called for one bucket of each kind, for the
first, and for those in which the rank's own gradients change something.
"""

from __future__ import annotations

from collections.abc import KeysView
from copy import copy
from functools import cached_property
from typing import NamedTuple

from dsplan.engine.base import Engine, Run
from dsplan.engine.reduce_buckets import BlockBuckets, block_buckets
from dsplan.engine.stretches import NOTHING, Effect, Runs, Same, first_of_block
from dsplan.partition import FlatPartition
from dsplan.tape import GRADIENT
from dsplan.zero import ZeroConfig


class Emptied(NamedTuple):
    """What blocks have emptied, and how they left the engine.

    Attributes:
        buckets, special: as :meth:`BlocksAtOnce._empty_in_blocks` returns them.
        left: the bucket that is left: its gradients, their elements, and what they span of the flat buffer.
        partition_exists: whether the rank's partition of gradients does then.
    """

    buckets: BlockBuckets
    special: dict[int, Effect]
    left: tuple[tuple[int, ...], int, int, int]
    partition_exists: bool


class BlocksAtOnce(Engine):
    """The part of an engine of stage 1 or 2 that takes blocks together; what it works on is the engine's."""

    #: Whether the class itself, and not one that it is made of, has rules by which blocks can be taken together.
    takes_blocks_at_once = False
    zero: ZeroConfig
    partition: FlatPartition
    slice_of: dict[int, int]
    owned: KeysView[int]
    offsets: tuple[int, ...]
    offload: bool
    accumulates: bool
    contiguous: bool
    reduces_in_hooks: bool
    buckets_exist: bool
    gradient_partition_exists: bool
    host_accumulation_exists: bool
    bucket: list[int]
    bucket_elements: int
    bucket_begin: int
    bucket_end: int
    oversized: int | None
    #: What blocks have emptied before, by all that it depends on but the run.
    emptied: dict[tuple[object, ...], Emptied]

    def _partition(self) -> None:
        raise NotImplementedError

    def _without_gradients(self) -> None:
        """As before the first backward pass."""
        raise NotImplementedError

    def _empty_bucket(self) -> None:
        raise NotImplementedError

    def _reduce_into_bucket(self, index: int) -> None:
        raise NotImplementedError

    def _reduce_bucket(self) -> None:
        raise NotImplementedError

    def _collective(self) -> None:
        raise NotImplementedError

    @property
    def _at_once(self) -> bool:
        return bool(vars(type(self)).get("takes_blocks_at_once"))

    def of_rank(self, run: Run) -> Engine | None:
        """As the engine's: initialisation asks only for the size of a rank's partition, which all have."""
        if not self._at_once:
            return None
        other = copy(self)
        other.run, other.ledger = run, run.ledger
        other._partition()
        other.owned = other.slice_of.keys()
        other._without_gradients()
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
        buckets, special = found
        kept = (*[(0, -size) for size in self._freed_in_block(order)], NOTHING)  # and after the last
        runs = buckets.of_blocks(kept, special)
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
        buckets, special = found
        self.ledger.rise_and_settle(*buckets.in_a_row(self._freed_in_block(order), special))
        return True

    def _freed_in_block(self, order: tuple[int, ...]) -> tuple[int, ...]:
        found = self._freed.get(order)
        if found is None:
            begin, rounded = first_of_block(self.run.model, 0), self.run.kernels.rounded
            found = self._freed[order] = tuple([rounded(self.e * self.sizes[begin + index]) for index in order])
        return found

    @cached_property
    def _freed(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """By the order of a block's gradients."""
        return {}

    def _in_order(self, begin: int, order: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Elements of a block's parameters, and where they are in the flat buffer from its first one on."""
        sizes, offsets = self.sizes[begin : begin + len(order)], self.offsets[begin : begin + len(order)]
        return tuple([sizes[index] for index in order]), tuple([offsets[index] - offsets[0] for index in order])

    def _empty_in_blocks(self, layers: range, order: tuple[int, ...]) -> tuple[BlockBuckets, dict[int, Effect]] | None:
        """The buckets that the gradients of ``layers`` empty, arriving in ``order`` in each of them.

        Where the engine is as it was before the same blocks of an earlier micro batch or step, they are what they were.

        Returns:
            The buckets, and what the reduction of those does that are not like their kind; the engine being as after
            all of them. None: the gradients of the first of these layers have to be taken one by one.
        """
        if self.oversized is not None:
            return None
        exist = self.gradient_partition_exists, self.host_accumulation_exists
        key = (layers, order, *self.bucket, *exist, self.boundary)
        found = self.emptied.get(key)
        if found is None:
            made = self._empty_anew(layers, order)
            if made is None:
                return None
            left = tuple(self.bucket), self.bucket_elements, self.bucket_begin, self.bucket_end
            self.emptied[key] = Emptied(*made, left, self.gradient_partition_exists)
        else:
            made = found.buckets, found.special
            bucket, self.bucket_elements, self.bucket_begin, self.bucket_end = found.left
            self.bucket = list(bucket)
            self.gradient_partition_exists = found.partition_exists
        lowest = min(layers[0], layers[-1])
        first, count = first_of_block(self.run.model, lowest), len(layers) * len(order)
        self._held[first : first + count] = bytes(count)
        return made

    def _empty_anew(self, layers: range, order: tuple[int, ...]) -> tuple[BlockBuckets, dict[int, Effect]] | None:
        """As :meth:`_empty_in_blocks`, but for the gradients that are held."""
        model, zero, part = self.run.model, self.zero, self.partition
        if not self._at_once or not self.blocks_are_alike or not self.contiguous or zero.round_robin_gradients:
            return None
        if self.offload and self.accumulates and zero.stage == 2 and not self.host_accumulation_exists:
            return None  # each makes its place on the host
        begin = first_of_block(model, layers[0])
        if len(order) != len(model.block_parameters):
            return None
        sizes, offsets = self._in_order(begin, order)
        if max(sizes) > zero.reduce_bucket_size:
            return None
        base = self.offsets[begin]
        buckets = block_buckets(
            sizes,
            offsets,
            num_blocks=len(layers),
            onwards=layers.step,
            limit=zero.reduce_bucket_size,
            pending=self.bucket_elements,
            base=base,
            partition=part.size,
            rules=(Same(self.run.plan), self.run.world_size, self.run.kernels),
        )

        apart = layers.step * len(order)

        def fill(bucket: int) -> None:
            indices = [begin + block * apart + order[place] for block, place in buckets.gradients(bucket)]
            self.bucket += indices
            self.bucket_elements += buckets.elements[bucket]
            if indices:
                lowest, highest = buckets.spans[bucket]
                self.bucket_begin = min(self.bucket_begin, lowest)
                self.bucket_end = max(self.bucket_end, highest)

        def try_collective() -> None:
            self._collective()
            self._empty_bucket()

        special = buckets.reduced(self.ledger.effect, fill, self._reduce_bucket, try_collective)
        own = self.run.rank * part.size
        for bucket in buckets.touching(own, own + part.size):
            if self.gradient_partition_exists and not self.offload:
                break
            fill(bucket)
            special[bucket] = self.ledger.effect(self._reduce_bucket)
        fill(len(buckets.places))
        return buckets, special

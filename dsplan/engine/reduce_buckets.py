"""Reduce buckets: where gradients that come block after block fill and empty DeepSpeed's bucket.

A gradient that no longer fits empties the bucket first. Blocks are alike, so where a bucket ends depends only on where
in a block it began, and what the reduction of a bucket takes only on that, and on whether it touches the partitions of
more ranks than one. So each kind of bucket has to be reduced once, not each bucket.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate, chain, groupby, repeat

from dsplan.engine.stretches import Effect, Runs

#: (place in its block of the first gradient, whether several ranks' partitions are touched).
Kind = tuple[int, bool]


class BlockBuckets:
    """The buckets that are emptied while the gradients of a row of blocks arrive.

    Args:
        sizes: elements of a block's gradients in the order in which they arrive.
        offsets: where each is in the flat buffer, from its block on, in elements.
        num_blocks: in the row.
        onwards: 1 where each block lies behind the one before it in the flat buffer, -1 where before it.
        limit: of a bucket, which no gradient is above; in elements.
        pending: elements that are in the bucket when the first gradient arrives.
        base: where the first block is in the flat buffer.
        partition: elements of each rank's.

    Attributes:
        places: of each bucket (number of the block in the row, place in it) of the gradient that empties it.
        starts: of each the same of its first gradient, of the first bucket that of its first from these blocks; and
            likewise of the bucket that is left.
        elements: of each that are from these blocks; and of the bucket that is left.
        spans: begin and end in the flat buffer of what each has from these blocks; and of the bucket that is left.
        kinds: of each, the first apart: what is in it from before may be anything.
        effects: what reducing a bucket of a kind does, which leaves nothing; whoever can tell fills it in.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        offsets: tuple[int, ...],
        *,
        num_blocks: int,
        onwards: int,
        limit: int,
        pending: int,
        base: int,
        partition: int,
    ) -> None:
        self._sizes, self._offsets = sizes, offsets
        self._num_blocks = num_blocks
        self._ends = list(accumulate(sizes))
        self._starts = [0, *self._ends[:-1]]
        self._base = base
        self._apart = onwards * self._ends[-1]  # a block from the one before it, in the flat buffer
        self.places: list[tuple[int, int]] = []
        self.starts = [(0, 0)]
        self.elements: list[int] = []
        self.spans: list[tuple[int, int]] = []
        seen: dict[int, int] = {}  # by its place, the bucket that the gradient at it begins
        block = place = 0
        after = self._after(0, limit - pending)
        while block + after[0] < num_blocks and place not in seen:
            if self.places:
                seen[place] = len(self.places)
            moved = base + block * self._apart
            blocks, place, elements, begin, end = after
            block += blocks
            self.places.append((block, place))
            self.elements.append(elements)
            self.spans.append((moved + begin, moved + end))
            after = self._after(place, limit)
        if place in seen:
            self._repeat(seen[place])
            block, place = self.places[-1]
        self.starts += self.places
        self.elements.append((num_blocks - block) * self._ends[-1] - self._starts[place])
        begin, end = self._span(place, num_blocks - block, 0)
        self.spans.append((base + block * self._apart + begin, base + block * self._apart + end))
        crosses = [begin % partition + end - begin > partition for begin, end in self.spans]
        self.kinds: list[Kind] = list(zip([place for _, place in self.starts], crosses, strict=True))[:-1]
        self.effects: dict[Kind, Effect] = {}
        self._blocks: list[tuple[Effect, ...]] = []
        self._freed: list[int] = []
        self._heights: list[int] = []  # of each bucket's reduction over the start, were no other special
        self._patched: dict[tuple[tuple[int, Effect], ...], Runs] = {}

    def _repeat(self, first: int) -> None:
        """The buckets from ``first`` on come again and again: the last ends at the place at which ``first`` began."""
        (begin, _), (end, _) = self.places[first - 1], self.places[-1]
        blocks = end - begin
        times = (self._num_blocks - 1) // blocks

        def later(start: int, step: int) -> range:
            return range(start + step, start + step * (times + 1), step)

        apart = blocks * self._apart
        of_places = [zip(later(block, blocks), repeat(place)) for block, place in self.places[first:]]
        of_spans = [zip(later(low, apart), later(high, apart), strict=True) for low, high in self.spans[first:]]
        places = list(chain.from_iterable(zip(*of_places, strict=True)))
        spans = list(chain.from_iterable(zip(*of_spans, strict=True)))
        elements = self.elements[first:] * times
        count = bisect_left(places, (self._num_blocks, 0))
        self.places += places[:count]
        self.spans += spans[:count]
        self.elements += elements[:count]

    def _after(self, place: int, room: int) -> tuple[int, int, int, int, int]:
        """Where the gradient is that no longer has ``room`` when those from ``place`` on arrive.

        Blocks until it comes, its place there, elements before it, and their span from the first one's block on.
        """
        blocks, rest = divmod(self._starts[place] + room, self._ends[-1])
        beyond = bisect_right(self._ends, rest)
        elements = blocks * self._ends[-1] + self._starts[beyond] - self._starts[place]
        return (blocks, beyond, elements, *self._span(place, blocks, beyond))

    def _span(self, place: int, blocks: int, beyond: int) -> tuple[int, int]:
        """Begin and end in the flat buffer of the gradients from ``place`` to before ``beyond``, ``blocks`` later."""
        parts = [(0, place, beyond if blocks == 0 else len(self._sizes))]
        if blocks and beyond:
            parts.append((blocks, 0, beyond))
        elif blocks > 1:
            parts.append((blocks - 1, 0, len(self._sizes)))
        begins, ends = [], []
        for block, first, stop in parts:
            base = block * self._apart
            begins += [base + offset for offset in self._offsets[first:stop]]
            ends += [base + self._offsets[each] + self._sizes[each] for each in range(first, stop)]
        return (min(begins), max(ends)) if begins else (0, 0)

    def reduced(
        self,
        effect: Callable[[Callable[[], None]], Effect],
        fill: Callable[[int], None],
        reduce: Callable[[], None],
        attempt: Callable[[], None],
    ) -> dict[int, Effect]:
        """Reduce the first bucket, which is returned, and one of each kind where none has been.

        Args:
            effect: of an action, as :meth:`dsplan.ledger.Ledger.effect`.
            fill: makes a bucket the engine's.
            reduce: reduces the engine's.
            attempt: does of it what all of a kind have in common, and empties it.
        """
        if not self.places:
            return {}
        fill(0)
        special = {0: effect(reduce)}
        if not self.effects:
            for kind in set(self.kinds[1:]):
                fill(self.kinds.index(kind, 1))
                self.effects[kind] = effect(attempt)
        return special

    def touching(self, begin: int, end: int) -> Iterator[int]:
        """The buckets that may have something of a range of the flat buffer, but for the first and the one left."""
        # In the order of arrival the range lies in the blocks from the first of these to the one after the second.
        blocks = sorted([(position - self._base) // self._apart for position in (begin, end)])
        lowest = max(bisect_left(self.places, (blocks[0], 0)), 1)
        beyond = min(bisect_left(self.starts, (blocks[1] + 2, 0)), len(self.places))
        for bucket in range(lowest, beyond):
            first, last = self.spans[bucket]
            if last > begin and first < end:
                yield bucket

    def gradients(self, bucket: int) -> list[tuple[int, int]]:
        """(Block, place) of each gradient of a bucket that comes from these blocks."""
        block, place = self.starts[bucket]
        last, beyond = self.places[bucket] if bucket < len(self.places) else (self._num_blocks, 0)
        if block == last:
            return [(block, each) for each in range(place, beyond)]
        found = [(block, each) for each in range(place, len(self._sizes))]
        found += [(each, other) for each in range(block + 1, last) for other in range(len(self._sizes))]
        return found + [(last, each) for each in range(beyond)]

    def in_a_row(self, sizes: tuple[int, ...], special: dict[int, Effect]) -> Effect:
        """What it comes to where the gradients do not arrive but are taken one after the other.

        Args:
            sizes: bytes of each of a block, which goes once it is taken; always the same.
            special: as for :meth:`of_blocks`.
        """
        before = [0, *accumulate(sizes)]
        if not self._freed:
            self._freed = [block * before[-1] + before[place] for block, place in self.places]
            rises = [self.effects[kind][0] for kind in self.kinds[1:]]
            self._heights = [0, *[rise - freed for rise, freed in zip(rises, self._freed[1:], strict=True)]]
        highest = level = start = 0
        for bucket, (rise, net) in special.items():
            highest = max(highest, level + max(self._heights[start:bucket], default=0))
            highest = max(highest, level + rise - self._freed[bucket])
            level += net
            start = bucket + 1
        highest = max(highest, level + max(self._heights[start:], default=-level))
        return highest, level - self._num_blocks * before[-1]

    def of_blocks(self, kept: tuple[Effect, ...], special: dict[int, Effect]) -> Runs:
        """What happens at each gradient of each block: runs of blocks at which the same does.

        Args:
            kept: what does where no bucket is emptied, and after the last; always the same.
            special: what the reduction of some buckets does, in their order; all others go by their kind.
        """
        key = tuple(special.items())
        found = self._patched.get(key)
        if found is None:
            blocks = list(self._by_kind(kept))
            for bucket, effect in key:
                block, place = self.places[bucket]
                each = list(blocks[block])
                each[place] = followed(effect, kept[place])
                blocks[block] = tuple(each)
            found = self._patched[key] = [(len(tuple(alike)), each) for each, alike in groupby(blocks)]
        return found

    def _by_kind(self, kept: tuple[Effect, ...]) -> list[tuple[Effect, ...]]:
        if self._blocks:
            return self._blocks
        ends: list[list[Kind]] = [[] for _ in range(self._num_blocks)]
        for (block, _), kind in zip(self.places[1:], self.kinds[1:], strict=True):
            ends[block].append(kind)
        emptied_at = dict(zip(self.kinds[1:], [place for _, place in self.places[1:]], strict=True))  # of each kind
        made: dict[tuple[Kind, ...], tuple[Effect, ...]] = {}
        for emptied in ends:
            key = tuple(emptied)
            found = made.get(key)
            if found is None:
                each = list(kept)
                for kind in key:
                    place = emptied_at[kind]
                    each[place] = followed(self.effects[kind], kept[place])
                found = made[key] = tuple(each)
            self._blocks.append(found)
        return self._blocks


def followed(first: Effect, second: Effect) -> Effect:
    """One after the other."""
    return max(first[0], first[1] + second[0]), first[1] + second[1]


@lru_cache(maxsize=64)
def block_buckets(
    sizes: tuple[int, ...],
    offsets: tuple[int, ...],
    *,
    num_blocks: int,
    onwards: int,
    limit: int,
    pending: int,
    base: int,
    partition: int,
    rules: tuple[object, ...],  # noqa: ARG001
) -> BlockBuckets:
    """The buckets of :class:`BlockBuckets`, once for all ranks; ``rules`` is all else that a reduction depends on."""
    return BlockBuckets(
        sizes,
        offsets,
        num_blocks=num_blocks,
        onwards=onwards,
        limit=limit,
        pending=pending,
        base=base,
        partition=partition,
    )

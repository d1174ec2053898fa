"""Reduce buckets: where gradients that come block after block fill and empty DeepSpeed's bucket.

A gradient that no longer fits empties the bucket first. Blocks are alike, so where a bucket ends depends only on where
in a block it began: after a few buckets the same ones come again and again, some blocks later each time. What the
reduction of a bucket takes depends only on where it began, too, and on whether it touches the partitions of more ranks
than one. So only the buckets up to the first repetition are counted out, and each kind of bucket is reduced once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain, groupby, zip_longest
from typing import NamedTuple

from dsplan.engine.stretches import NOTHING, Effect, Runs

#: (place in its block of the first gradient, whether several ranks' partitions are touched).
Kind = tuple[int, bool]
#: (Place, what the reduction there does) of each bucket that a block empties.
Emptied = tuple[tuple[int, Effect], ...]


class Bucket(NamedTuple):
    """One bucket, as far as it is filled from the row of blocks.

    Attributes:
        start: place in its block of the first gradient.
        block, place: number of the block in the row, and place in it, of the gradient that empties the bucket.
        elements: in it.
        begin, end: of what it spans in the flat buffer.
    """

    start: int
    block: int
    place: int
    elements: int
    begin: int
    end: int


class BlockBuckets:
    """The buckets that are emptied while the gradients of a row of blocks arrive, numbered from 0 on.

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
        count: of buckets; that of this number is the one that is left.
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
        self._stops = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        self._lowest_to = list(accumulate(offsets, min))  # of those up to a place; likewise from one on
        self._highest_to = list(accumulate(self._stops, max))
        self._lowest_from = list(accumulate(reversed(offsets), min))[::-1]
        self._highest_from = list(accumulate(reversed(self._stops), max))[::-1]
        self._base = base
        self._apart = onwards * self._ends[-1]  # a block from the one before it, in the flat buffer
        self._partition = partition
        self._first: list[Bucket] = []  # those before the first that comes again
        self._again: list[Bucket] = []  # those that come again, ``_period`` blocks later each time
        self._period = num_blocks
        self._count_out(limit, pending)
        self._times = [max(-(-(num_blocks - each.block) // self._period), 0) for each in self._again]
        self.count = len(self._first) + sum(self._times)
        self._crosses = [self._that_cross(*each) for each in zip(self._again, self._times, strict=True)]
        self.effects: dict[Kind, Effect] = {}
        self._regular: list[tuple[int, tuple[Effect, ...]]] = []
        self._run_starts: list[int] = []
        self._patched: dict[tuple[tuple[int, Effect], ...], Runs] = {}

    def _count_out(self, limit: int, pending: int) -> None:
        found: list[Bucket] = []
        seen: dict[int, int] = {}  # by its place, the bucket that the gradient at it begins
        block = place = 0
        room = limit - pending
        while place not in seen:
            if found:
                seen[place] = len(found)
            blocks, rest = divmod(self._starts[place] + room, self._ends[-1])
            if block + blocks >= self._num_blocks:
                self._first = found
                return
            beyond = bisect_right(self._ends, rest)
            found.append(self._bucket(block, place, block + blocks, beyond))
            block, place, room = block + blocks, beyond, limit
        again = seen[place]
        self._first, self._again = found[:again], found[again:]
        self._period = block - self._first[-1].block

    def _bucket(self, block: int, place: int, last: int, beyond: int) -> Bucket:
        """That from ``place`` of ``block`` on to before ``beyond`` of the block ``last``."""
        elements = (last - block) * self._ends[-1] + self._starts[beyond] - self._starts[place]
        base = self._base + block * self._apart
        begin = end = 0
        if block == last and place < beyond:
            begin, end = base + min(self._offsets[place:beyond]), base + max(self._stops[place:beyond])
        elif block < last:
            begin, end = base + self._lowest_from[place], base + self._highest_from[place]
            tail, stop = (last, beyond - 1) if beyond else (last - 1, len(self._sizes) - 1)
            if block < tail:
                base = self._base + tail * self._apart
                begin, end = min(begin, base + self._lowest_to[stop]), max(end, base + self._highest_to[stop])
        return Bucket(place, last, beyond, elements, begin, end)

    def bucket(self, number: int) -> Bucket:
        """Of all up to the one that is left, whose block is the one after the last."""
        again = number - len(self._first)
        if number == self.count:
            block, place = self.place(number - 1) if number else (0, 0)
            return self._bucket(block, place, self._num_blocks, 0)
        if again < 0:
            return self._first[number]
        times, which = divmod(again, len(self._again))
        start, block, place, elements, begin, end = self._again[which]
        apart = times * self._period
        moved = apart * self._apart
        return Bucket(start, block + apart, place, elements, begin + moved, end + moved)

    def place(self, number: int) -> tuple[int, int]:
        """Of a bucket the block, as its number in the row, and the place of the gradient that empties it."""
        again = number - len(self._first)
        if again < 0:
            return self._first[number][1:3]
        times, which = divmod(again, len(self._again))
        _, block, place, *_ = self._again[which]
        return block + times * self._period, place

    def _within(self, each: Bucket, times: int, begin: int, end: int) -> range:
        """How many times later ``each`` spans something from ``begin`` to ``end`` of the flat buffer, in elements.

        Of an empty range, which is a border: has something on both sides of it.
        """
        apart = self._period * self._apart
        if apart > 0:
            first, beyond = (begin - each.end) // apart + 1, -((each.begin - end) // apart)
        else:
            first, beyond = (end - each.begin) // apart + 1, -((each.end - begin) // apart)
        return range(first if first > 0 else 0, beyond if beyond < times else times)

    def _that_cross(self, each: Bucket, times: int) -> bytearray:
        """Whether ``each`` lies in several partitions, of all the times that it comes."""
        size, part, apart = each.end - each.begin, self._partition, self._period * self._apart
        if size > part:
            return bytearray(b"\1") * times
        begins = range(each.begin, each.begin + times * apart, apart)
        borders = range(min(begins[0], begins[-1]) // part * part + part, max(begins[0], begins[-1]) + size, part)
        if len(borders) > times:
            return bytearray([begin % part + size > part for begin in begins])
        found = bytearray(times)
        for border in borders:
            for time in self._within(each, times, border, border):
                found[time] = 1
        return found

    def _kind(self, number: int) -> Kind:
        again = number - len(self._first)
        if again >= 0:
            time, which = divmod(again, len(self._again))
            return self._again[which].start, self._crosses[which][time] == 1
        each = self._first[number]
        return each.start, each.begin % self._partition + each.end - each.begin > self._partition

    def _kinds(self) -> Iterator[tuple[Kind, int]]:
        """The kinds of the buckets but the first, each with one of that kind."""
        for number in range(1, len(self._first)):
            yield self._kind(number), number
        for which, (each, crosses) in enumerate(zip(self._again, self._crosses, strict=True)):
            for cross in (False, True):
                time = crosses.find(cross)
                if time >= 0:
                    yield (each.start, cross), len(self._first) + which + time * len(self._again)

    @cached_property
    def _rising(self) -> list[tuple[int, int, bool]]:
        """Of the kinds that come again those that rise: how far, which bucket, and whether it crosses."""
        kinds = [(which, each.start, cross) for which, each in enumerate(self._again) for cross in (False, True)]
        found = [(self.effects.get((start, cross), NOTHING)[0], which, cross) for which, start, cross in kinds]
        return [each for each in found if each[0]]

    def _rises(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Of the buckets from ``start`` to before ``stop`` the first of each kind that rises: how far, and where."""
        first, step = len(self._first), len(self._again)
        for number in range(start, min(stop, first)):
            yield self.effect_of(number)[0], *self.place(number)
        for rise, which, cross in self._rising:
            time = self._crosses[which].find(cross, max(-((first + which - start) // step), 0))
            if time >= 0 and first + which + time * step < stop:
                each = self._again[which]
                yield rise, each.block + time * self._period, each.place

    def find_effects(self, effect: Callable[[Callable[[], None]], Effect], reduce: Callable[[int], None]) -> None:
        """Reduce a bucket of each kind, but for the first one, where that has not been done.

        Args:
            effect: of an action, as :meth:`dsplan.ledger.Ledger.effect`.
            reduce: does of the reduction of a bucket what all of its kind have in common.
        """
        if self.effects:
            return
        for kind, number in self._kinds():
            if kind not in self.effects:
                self.effects[kind] = effect(partial(reduce, number))

    def effect_of(self, number: int) -> Effect:
        """What reducing a bucket does, by its kind; of the first one nobody knows."""
        return self.effects[self._kind(number)]

    def touching(self, begin: int, end: int) -> list[int]:
        """The buckets that may have something of a range of the flat buffer, but for the one that is left."""
        found = [number for number, each in enumerate(self._first) if each.end > begin and each.begin < end]
        again, step = len(self._first), len(self._again)
        ranges = []
        for which, (each, times) in enumerate(zip(self._again, self._times, strict=True), start=again):
            touched = self._within(each, times, begin, end)
            ranges.append(range(which + touched.start * step, which + touched.stop * step, step))
        return found + sorted(chain(*ranges))

    def gradients(self, number: int) -> list[tuple[int, int]]:
        """(Block, place) of each gradient of a bucket that comes from these blocks."""
        block, place = self.place(number - 1) if number else (0, 0)
        last, beyond = self.place(number) if number < self.count else (self._num_blocks, 0)
        if block == last:
            return [(block, each) for each in range(place, beyond)]
        found = [(block, each) for each in range(place, len(self._sizes))]
        found += [(each, other) for each in range(block + 1, last) for other in range(len(self._sizes))]
        return found + [(last, each) for each in range(beyond)]

    def in_a_row(self, kept: tuple[Effect, ...], special: dict[int, Effect]) -> Effect:
        """What it comes to where the gradients do not arrive but are taken one after the other; as :meth:`of_blocks`.

        Nothing rises where no bucket is emptied, and the level falls with every gradient.
        """
        before = list(accumulate([net for _, net in kept], initial=0))
        highest = level = start = 0
        for number, effect in (*special.items(), (self.count, NOTHING)):
            own = [(effect[0], *self.place(number))] if number < self.count else []
            for rise, block, place in (*self._rises(start, number), *own):
                highest = max(highest, level + rise + block * before[-1] + before[place])
            level += effect[1]
            start = number + 1
        return highest, level + self._num_blocks * before[-1]

    def of_blocks(self, kept: tuple[Effect, ...], special: dict[int, Effect]) -> Runs:
        """What happens at each gradient of each block: runs of blocks at which the same does.

        Args:
            kept: what does where no bucket is emptied, and after the last; always the same.
            special: what the reduction of some buckets does, in their order; all others go by their kind.
        """
        key = tuple(special.items())
        found = self._patched.get(key)
        if found is None:
            found = self._patched[key] = self._with_special(kept, special)
        return found

    def _with_special(self, kept: tuple[Effect, ...], special: dict[int, Effect]) -> Runs:
        if not self._regular:
            self._find_regular(kept)
            self._run_starts = list(accumulate([count for count, _ in self._regular], initial=0))
        changes: dict[int, list[tuple[int, Effect]]] = {}  # by block
        for number, effect in special.items():
            block, place = self.place(number)
            changes.setdefault(block, []).append((place, followed(effect, kept[place])))
        runs = list(self._regular)
        for block, changed in reversed(changes.items()):  # so that the runs before it are where they were
            at = bisect_right(self._run_starts, block) - 1
            count, each = runs[at]
            inside = block - self._run_starts[at]
            effects = list(each)
            for place, effect in changed:
                effects[place] = effect
            parts = ((inside, each), (1, tuple(effects)), (count - inside - 1, each))
            runs[at : at + 1] = [part for part in parts if part[0]]
        return runs

    def _find_regular(self, kept: tuple[Effect, ...]) -> None:
        """:meth:`of_blocks` where nothing is special; there is nothing yet at the first bucket, which always is."""
        runs = self._regular
        made: dict[Emptied, tuple[Effect, ...]] = {}
        turn = self._first[-1].block + 1 if self._again else self._num_blocks
        for count, emptied in chain(self._emptied_once(turn), self._emptied_again(turn)):
            each = made.get(emptied)
            if each is None:
                effects = list(kept)
                for place, effect in emptied:
                    effects[place] = followed(effect, kept[place])
                each = made[emptied] = tuple(effects)
            times = runs.pop()[0] if runs and runs[-1][1] == each else 0
            runs.append((times + count, each))

    def _emptied_once(self, turn: int) -> Iterator[tuple[int, Emptied]]:
        """Runs of blocks, with what each of them empties, up to the block from which on all comes again."""
        by_block: dict[int, list[tuple[int, Effect]]] = {}
        for number, bucket in enumerate((*self._first, *self._again)):
            if number and bucket.block < turn:
                by_block.setdefault(bucket.block, []).append((bucket.place, self.effect_of(number)))
        before = 0
        for block, emptied in by_block.items():
            yield from [(block - before, ())] if before < block else []
            yield 1, tuple(emptied)
            before = block + 1
        yield from [(turn - before, ())] if before < turn else []

    def _emptied_again(self, turn: int) -> Iterator[tuple[int, Emptied]]:
        """The same from there on: period after period, by which of its buckets cross."""
        rest, period = self._num_blocks - turn, self._period
        columns = [crosses[bucket.block < turn :] for bucket, crosses in zip(self._again, self._crosses, strict=True)]
        made: dict[tuple[int | None, ...], list[Emptied]] = {}
        for row, alike in groupby(zip_longest(*columns)):
            blocks = made.get(row)
            if blocks is None:
                blocks = made[row] = self._emptied_in_period(row, turn)
            times = len(tuple(alike))
            if period == 1:
                yield times, blocks[0]
            else:
                yield from [(1, emptied) for emptied in (blocks * times)[:rest]]
            rest -= period * times
        yield from [(rest, ())] if rest > 0 else []

    def _emptied_in_period(self, row: tuple[int | None, ...], turn: int) -> list[Emptied]:
        """By block; ``row`` says of each bucket that comes again whether it crosses, or None: it comes no more."""
        blocks: list[list[tuple[int, Effect]]] = [[] for _ in range(self._period)]
        for bucket, cross in zip(self._again, row, strict=True):
            if cross is not None:
                effect = self.effects[bucket.start, cross == 1]
                blocks[(bucket.block - turn) % self._period].append((bucket.place, effect))
        return [tuple(emptied) for emptied in blocks]


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

"""Alike: stage 3's coordinator over alike blocks, of which those that act as the one before are not taken one by one.

What the rules do within a block depends on how the parameters stand that they look at, on the next entries of the
trace, and on how much is gathered. Where all of that is, counted from the block, as it was for the block before, the
same happens again; and so it does in all blocks after it, until a parameter comes into sight that stands otherwise.
What is skipped is compared with :mod:`dsplan.engine.coordinator`, hook by hook, in tests/engine/test_alike.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dsplan.engine.alike_rules import Asked, Rules
from dsplan.engine.coordinator import UNASKED
from dsplan.engine.hook_parts import HookPart
from dsplan.engine.hooks import Change
from dsplan.engine.parts_trace import Segment, trace_of
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.zero import ZeroConfig

#: (position, how many changes, how often they come one after the other).
Repeat = tuple[int, int, int]
#: Of each submodule that is left in a block which of its parameters can go.
Answers = list[tuple[bool, ...]]


#: The nearest and the furthest block of those in sight, of each row of them, counted in the order in which they run.
Sights = tuple[tuple[int, int], ...]


class Before(NamedTuple):
    """What there was before a block."""

    stands: list[int]
    held: list[int]
    taken: int
    available: int
    level: int
    forgotten: int


class AlikeCoordinator(Rules):
    """A coordinator whose passes are told in parts."""

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        super().__init__(model, zero, world_size, element_bytes, kernels)
        #: Of the last pass: changes that come several times one after the other.
        self.repeats: list[Repeat] = []
        self._open: tuple[int, ...] = ()
        #: Of each part and block; DeepSpeed asks once in the life of a run (functools.lru_cache).
        self._answers: list[list[Answers]] = []
        self._asked: list[Asked] = []

    def run_parts(self, parts: tuple[HookPart, ...]) -> list[Change]:
        """One forward and backward; in the first one the trace is not known yet, later ones prefetch by it."""
        trace = trace_of(parts, self.sizes)
        if self._answers:
            self._queue = trace.queue
        else:
            self._answers = [[[] for _ in part.layers] for part in parts]
        self._open = trace.open
        self.taken = self.available = 0
        self.forgotten, self.repeats = [], []
        changes: list[Change] = []
        for segment, answers in zip(trace.segments, self._answers, strict=True):
            self._row(segment, answers, changes)
        return changes

    def leftovers(self) -> Change:
        """release_backward_leftovers: modules whose inputs carry no gradient never left their backward."""
        start = self.level
        self._users.clear()
        for parameter in self._open:
            if not self.persists[parameter] and self.stands[parameter]:
                self.release(parameter)
        return 0, self.level - start

    def state(self) -> tuple[int, ...]:
        """What is gathered, parameter by parameter: a pass that starts from the same state is the same."""
        return tuple(self.stands)

    def _row(self, segment: Segment, answers: list[Answers], changes: list[Change]) -> None:
        """The blocks of a part one after the other."""
        number, count = 0, len(segment.part.layers)
        while number < count:
            known, position, before = bool(answers[number]), len(changes), self._before()
            self._block(segment, number, answers[number], changes)
            number += 1
            times, sights = self._times(segment, number, before, answers, known=known) if number < count else (0, ())
            if times:
                made = changes[position:]
                changes += made * times
                self.repeats.append((position, len(made), 1 + times))
                self._again(segment.part, times, before, sights, len(made))
                if self._queue:
                    answers[number : number + times] = [answers[number - 1]] * times
                number += times

    def _before(self) -> Before:
        self.least_room, self.most_room = UNASKED, -UNASKED
        self.lowest, self.highest = len(self.stands), -1
        self._asked = []
        return Before(self.stands[:], self.held[:], self.taken, self.available, self.level, len(self.forgotten))

    def _block(self, segment: Segment, number: int, answers: Answers, changes: list[Change]) -> None:
        base, entry = segment.part.base(number), segment.first[1] + number * segment.per_block[1]
        known, asks = bool(answers), 0
        for action in segment.actions:
            self.rise = level = self.level
            if action.enters:
                self.enter(action, base, entry + action.entries)
            elif not self._queue:
                self.leave(action, base, len(changes), (True,) * len(action.parameters))
            else:
                if not known:
                    answers.append(self.releases(action, base, number, self._asked))
                self.leave(action, base, len(changes), answers[asks])
                asks += 1
            changes.append((self.rise - level, self.level - level))

    # Several blocks at once.

    def _times(
        self, segment: Segment, number: int, before: Before, answers: list[Answers], *, known: bool
    ) -> tuple[int, Sights]:
        """How many of the blocks from ``number`` on act as the one before them, which has just been taken.

        And which blocks that one has looked at; for others they move on with it.
        """
        part = segment.part
        times = min(
            len(part.layers) - number,
            self._while_there_is_room(before),
            self._while_there_are_entries(segment, number, before),
        )
        if times > 0 and self._queue:
            times = self._while_released_alike(part, number, times, before, answers, known=known)
        if times <= 0:
            return 0, ()
        near = _numbers(part, [part.base(number - 1), *((self.lowest, self.highest) if self.highest >= 0 else ())])
        taken = self._queue[before.taken : self.taken]
        if not taken:
            return self._while_in_sight(part, times, before, (near,)), (near,)
        far = _numbers(part, taken)
        both: Sights = ((min(near[0], far[0]), max(near[1], far[1])),)
        found = self._while_in_sight(part, times, before, both)
        if found or near[1] >= far[0]:
            return found, both
        # The rules do not look at what is between the block's own parameters and those that it prefetches.
        times = min(times, far[0] - near[1])
        return self._while_in_sight(part, times, before, (near, far)), (near, far)

    def _while_in_sight(self, part: HookPart, times: int, before: Before, sights: Sights) -> int:
        """Of ``times`` blocks those to which all parameters in sight stand as they stood to the block before."""
        for nearest, furthest in sights:
            times = min(times, len(part.layers) - 1 - furthest)
            if nearest < 0 or times <= 0:
                return 0
            was, now = _blocks(part, nearest, furthest + 1), _blocks(part, nearest + 1, furthest + 2)
            if before.stands[was] != self.stands[now] or before.held[was] != self.held[now]:
                return 0
            # What comes into sight block by block stands as what has come into sight last.
            times = min([_alike(part, values, furthest + 1, times) for values in (self.stands, self.held)])
        return times

    def _while_there_is_room(self, before: Before) -> int:
        """Blocks until what is gathered more or less in each makes a difference to what is prefetched."""
        more = self.available - before.available
        if more == 0:
            return len(self.sizes)
        least = max(self.zero.stage3_prefetch_bucket_size, 1)  # from here on the room does not decide
        if self.least_room >= least:
            return (self.least_room - least) // more if more > 0 else len(self.sizes)
        if self.most_room <= 0:
            return len(self.sizes) if more > 0 else self.most_room // more
        return 0

    def _while_there_are_entries(self, segment: Segment, number: int, before: Before) -> int:
        """Blocks that take as much from the queue as the block before ``number`` has taken, counted from each."""
        first, per_block, end = segment.first[1], segment.per_block[1], segment.end[1]
        taken = self.taken - before.taken
        if taken == 0 and (not self._queue or self.taken >= end):
            return len(self.sizes)
        if taken == 0:  # the blocks whose own entries have all been taken
            return (self.taken - first - number * per_block) // per_block
        if taken != per_block or before.taken < first:
            return 0
        return (min(end, len(self._queue) - 1) - self.taken) // per_block

    def _while_released_alike(
        self, part: HookPart, number: int, times: int, before: Before, answers: list[Answers], *, known: bool
    ) -> int:
        """Blocks whose parameters are released, or kept, as those of the block before ``number``."""
        if known:
            like = answers[number - 1]
            alike = (each is like or each == like for each in answers[number : number + times])
            return next((place for place, same in enumerate(alike) if not same), times)
        taken = self.taken - before.taken
        for value, slope, is_entry in self._asked:
            times = min(times, _while_alike(value, slope - taken * is_entry))
        return _alike(part, self.persists, number - 1, times + 1) - 1

    def _again(self, part: HookPart, times: int, before: Before, sights: Sights, length: int) -> None:
        """The state after ``times`` more blocks that act as the one just taken, each of ``length`` hooks."""
        for nearest, furthest in sights:
            for values in (self.stands, self.held):
                moved = values[_blocks(part, nearest, furthest + 1)]  # and leaves blocks like its nearest one behind
                left = (moved[: part.stride] if part.shift > 0 else moved[-part.stride :]) * times
                values[_blocks(part, nearest, furthest + 1 + times)] = left + moved if part.shift > 0 else moved + left
        forgotten = self.forgotten[before.forgotten :]
        for each in range(1, times + 1) if forgotten else ():
            for position, parameters, size in forgotten:
                those = tuple([parameter + each * part.shift for parameter in parameters])
                self.forgotten.append((position + each * length, those, size))
        self.taken += times * (self.taken - before.taken)
        self.available += times * (self.available - before.available)
        self.level += times * (self.level - before.level)


def _numbers(part: HookPart, parameters: Sequence[int]) -> tuple[int, int]:
    """The nearest and the furthest block that parameters are in."""
    ends = part.number_of(min(parameters)), part.number_of(max(parameters))
    return min(ends), max(ends)


def _blocks(part: HookPart, begin: int, end: int) -> slice:
    """The parameters of the blocks from ``begin`` to before ``end``."""
    ends = part.base(begin), part.base(end - 1)
    return slice(min(ends), max(ends) + part.stride)


def _alike(part: HookPart, values: list[int] | bytes, begin: int, times: int) -> int:
    """How many of so many blocks from ``begin`` on have the values of the first."""
    first = values[_blocks(part, begin, begin + 1)]
    if values[_blocks(part, begin, begin + times)] == first * times:
        return times
    alike = (values[_blocks(part, begin + each, begin + each + 1)] == first for each in range(times))
    return next(each for each, same in enumerate(alike) if not same)


def _while_alike(value: int, slope: int) -> int:
    """How often ``slope`` can be added to a value before it is below 0 where it was not, or not where it was."""
    if value < 0:
        return (-1 - value) // slope if slope > 0 else UNASKED
    return value // -slope if slope < 0 else UNASKED

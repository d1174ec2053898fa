"""Alike: stage 3's coordinator over alike blocks, of which those that act as the one before are not taken one by one.

What the rules do within a block depends on little: on what is known of its own parameters when it begins, on the next
entries of the trace, and on how much is gathered. Where all of that is, counted from the block, as it was for the block
before, the same happens again; then the state after several blocks is arithmetic. What is compared is all that
:mod:`dsplan.engine.coordinator` reads, so the result is the same to the byte (tests/engine/test_alike.py).
"""

from __future__ import annotations

from itertools import compress

from dsplan.engine.alike_state import NO_FLIGHTS, Before, Flight, Flights, Own
from dsplan.engine.coordinator import UNASKED, Batch, Coordinator, Pass
from dsplan.engine.hook_parts import HookPart
from dsplan.engine.hooks import Change, Module
from dsplan.engine.parts_trace import PartsTrace, Segment, trace_of
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.tape import LEAVE
from dsplan.zero import ZeroConfig

#: (position, how many changes, how often they come one after the other).
Repeat = tuple[int, int, int]
#: Of each parameter of a submodule whether it can be released, in the order in which submodules of a block are left.
Answers = list[tuple[bool, ...]]


class AlikeCoordinator(Coordinator):
    """A coordinator whose passes are told in parts; :meth:`run_parts` is :meth:`run` of all their hooks."""

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        super().__init__(model, zero, world_size, element_bytes, kernels)
        #: Of the last pass: changes that come several times one after the other.
        self.repeats: list[Repeat] = []
        self._persists = bytes([parameter in self.persistent for parameter in range(len(self.sizes))])
        self._segments: list[Segment] = []
        self._rows: list[tuple[Segment, range]] = []  # those of alike blocks
        self._answers: list[list[Answers]] = []  # of each part and block
        self._of_block: Answers | None = None  # of the block under way
        self._asks = 0
        self._asked: list[tuple[int, int]] = []  # parameters and steps of which the next use mattered
        self._made: list[Batch] = []

    def run_parts(self, parts: tuple[HookPart, ...]) -> list[Change]:
        """One forward and backward; the first call records the trace, later ones prefetch by it."""
        if self._recording:
            self._recording = []
            self._complete_from(trace_of(parts, self.sizes))
        state = Pass()
        if self._trace is not None:
            state.queue.extend(self._queue)
        if not self._answers:
            self._answers = [[[] for _ in part.layers] for part in parts]
        self.forgotten, self.repeats = [], []
        changes: list[Change] = []
        for index, part in enumerate(parts):
            if part.modules is None:
                self._of_block = None
                changes += self._run_marks(part, 0, len(changes), state)
            else:
                self._row(part, index, changes, state)
        return changes

    def _run_marks(self, part: HookPart, number: int, position: int, state: Pass) -> list[Change]:
        marks = part.marks_of(number)
        saving: frozenset[int] = frozenset()
        if part.saves:
            saving = frozenset([place for place, (kind, _) in enumerate(marks, position) if kind == LEAVE])
        return self._run(marks, position, position + len(marks), saving, state)

    def _row(self, part: HookPart, index: int, changes: list[Change], state: Pass) -> None:
        """Alike blocks one after the other."""
        count, number = len(part.layers), 0
        traced = self._trace is not None
        while number < count:
            answers = self._of_block = self._answers[index][number] if traced else None
            known = bool(answers)
            self._asks, self._asked, self._made = 0, [], []
            state.least_room, state.most_room = UNASKED, -UNASKED
            before = self._before(part, index, number, state)
            position = len(changes)
            changes += self._run_marks(part, number, position, state)
            number += 1
            times = self._times(part, index, number, before, state, known=known) if number < count else 0
            if times:
                length = len(changes) - position
                self._again(part, index, number, times, before, state, length)
                changes += changes[position:] * times
                self.repeats.append((position, length, 1 + times))
                number += times
        self._of_block = None

    # What a block's hooks depend on.

    def _before(self, part: HookPart, index: int, number: int, state: Pass) -> Before:
        taken, ahead = 0, None
        if self._trace is not None:
            taken = len(self._queue) - len(state.queue)
            entries = self._segments[index].entries
            ahead = [self.status[parameter] for parameter, _ in self._queue[taken : taken + entries]]
        # Submodules without parameters are never left in their backward, which changes nothing.
        self._in_backward = {user: module for user, module in self._in_backward.items() if module.parameters}
        return Before(
            own=self._own(part, index, number, state),
            taken=taken,
            ahead=ahead,
            available=state.available_elements,
            level=self.level,
            backward=list(self._in_backward),
            forgotten=len(self.forgotten),
            step=state.step,
        )

    def _own(self, part: HookPart, index: int, number: int, state: Pass) -> Own | None:
        """What is known of a block's own parameters, counted from the block; None where others are involved."""
        begin, end = self._range(part, number)
        flights = self._flights(begin, end)
        if flights is None or any(self.active[begin:end]):
            return None
        return Own(
            status=self.status[begin:end],
            storage=self.storage[begin:end],
            persists=self._persists[begin:end],
            held=self._held(begin, end),
            flights=flights,
            fetched=self._fetched(index, part.layers[number], state),
        )

    def _flights(self, begin: int, end: int) -> Flights | None:
        """What of a block's parameters is on its way, and with what; None where other blocks' parameters are in it."""
        if not self.in_flight:
            return NO_FLIGHTS
        batches: dict[int, int] = {}
        flying: list[int] = []
        kinds: list[Flight] = []
        for batch in map(self.in_flight.get, range(begin, end)):
            if batch is None:
                flying.append(-1)
                continue
            known = batches.get(id(batch))
            if known is None:
                parameters = batch.parameters  # in their order
                if parameters[0] < begin or parameters[-1] >= end:
                    return None
                known = batches[id(batch)] = len(kinds)
                shape = batch.shape = batch.shape or tuple([each - parameters[0] for each in parameters])
                now = (batch.flat_bytes, batch.outstanding, batch.split, batch.staged_bytes)
                kinds.append((shape, parameters[0] - begin, now))
            flying.append(known)
        return (flying, kinds) if kinds else NO_FLIGHTS

    def _fetched(self, index: int, layer: int, state: Pass) -> tuple[int, ...]:
        """Of a block's entries in this part of the trace and in those after it, how many are no longer in the queue.

        They tell for which use each of its parameters was taken last. What was taken for a part before this one is
        over, and what was taken for one after it is not needed yet, whenever in them that is.
        """
        if self._trace is None:
            return ()
        taken = len(self._queue) - len(state.queue)
        found = []
        for segment, layers in self._rows:
            if segment.entry >= self._segments[index].entry:
                start = segment.entry + (layer - layers[0]) * layers.step * segment.entries
                found.append(min(max(taken - start, 0), segment.entries))
        return tuple(found)

    def _held(self, begin: int, end: int) -> object:
        if not self.saved and not self.detached:
            return None
        return [(parameter in self.saved, self.detached.get(parameter)) for parameter in range(begin, end)]

    def _are_alike(self, part: HookPart, index: int, number: int, times: int, own: Own, state: Pass) -> int:
        """How many of the blocks from ``number`` on, one after the other, are known as ``own``; up to ``times``."""
        for values, wanted in ((self.status, own.status), (self.storage, own.storage), (self._persists, own.persists)):
            begin, end = self._range_of(part, number, times)
            if values[begin:end] != wanted * times:
                alike = (values[slice(*self._range(part, number + each))] == wanted for each in range(times))
                times = next((each for each, same in enumerate(alike) if not same), times)
        begin, end = self._range_of(part, number, times)
        still = own.flights is NO_FLIGHTS and not any(begin <= parameter < end for parameter in self.in_flight)
        if still and self._trace is None and not self.saved and not self.detached and not any(self.active[begin:end]):
            return times
        for each in range(times):
            begin, end = self._range(part, number + each)
            if (
                not (still or self._flights(begin, end) == own.flights)
                or self._fetched(index, part.layers[number + each], state) != own.fetched
                or self._held(begin, end) != own.held
                or any(self.active[begin:end])
            ):
                return each
        return times

    def _range_of(self, part: HookPart, number: int, times: int) -> tuple[int, int]:
        """The parameters of several blocks one after the other."""
        ends = [place for each in (number, number + times - 1) for place in self._range(part, each)]
        return min(ends), max(ends)

    def _range(self, part: HookPart, number: int) -> tuple[int, int]:
        """The block's parameters."""
        assert part.modules is not None
        begin = part.modules.first + part.layers[number] * part.modules.stride
        return begin, begin + part.modules.stride

    def _times(self, part: HookPart, index: int, number: int, before: Before, state: Pass, *, known: bool) -> int:
        """How many of the blocks from ``number`` on act as the one before them, which has just been taken."""
        still = [user for user, module in self._in_backward.items() if module.parameters]
        if before.own is None or still != before.backward:
            return 0
        if not self._are_alike(part, index, number, 1, before.own, state):
            return 0
        begin, end = self._range(part, number - 1)
        if any(self.active[begin:end]) or any(parameter in self.in_flight for parameter in range(begin, end)):
            return 0
        times = min(
            len(part.layers) - number,
            self._while_there_is_room(before, state),
            self._while_the_queue_is_alike(index, number, before, state),
        )
        if times > 0 and self._trace is not None:
            times = self._while_released_alike(part, index, number, times, known=known)
        return self._are_alike(part, index, number, times, before.own, state) if times > 0 else 0

    def _while_there_is_room(self, before: Before, state: Pass) -> int:
        """Blocks until what is gathered more or less in each makes a difference to what is prefetched."""
        more = state.available_elements - before.available
        if more == 0:
            return len(self.sizes)
        least = max(self.zero.stage3_prefetch_bucket_size, 1)  # from here on the room does not decide
        if state.least_room >= least:
            return (state.least_room - least) // more if more > 0 else len(self.sizes)
        if state.most_room <= 0:
            return len(self.sizes) if more > 0 else state.most_room // more
        return 0

    def _while_the_queue_is_alike(self, index: int, number: int, before: Before, state: Pass) -> int:
        """Blocks that take from the queue what the block before ``number`` has taken, counted from each."""
        taken = len(self._queue) - len(state.queue)
        if self._trace is None or taken == before.taken:
            return len(self.sizes) if all(batch.outstanding == 0 for batch in self._made) else 0
        segment = self._segments[index]
        per_block = segment.entries
        beyond = taken - (segment.entry + number * per_block)  # entries ahead of the next block's own
        last = segment.entry + len(self._answers[index]) * per_block
        if taken - before.taken != per_block or before.taken < segment.entry or beyond < 0:
            return 0
        times = (min(last, len(self._queue) - 1) - taken) // per_block
        if beyond:
            times = min(times, beyond // per_block)  # the blocks whose own entries have all been taken
        elif any(batch.outstanding for batch in self._made):
            return 0
        for each in range(times):
            start = taken + each * per_block
            if [self.status[parameter] for parameter, _ in self._queue[start : start + per_block]] != before.ahead:
                return each
        return times

    def _while_released_alike(self, part: HookPart, index: int, number: int, times: int, *, known: bool) -> int:
        """Blocks whose parameters are released, or kept, as those of the block before ``number``."""
        answers = self._answers[index]
        if known:  # DeepSpeed asks once in the life of a run
            for each in range(times):
                if answers[number + each] is not answers[number - 1] and answers[number + each] != answers[number - 1]:
                    return each
            return times
        steps = self._segments[index].steps
        for parameter, step in self._asked:
            answer = self._is_soon(parameter, step)
            low, high = 0, times  # the distance to the next use changes by the same from block to block
            while low < high:
                middle = high if low == 0 and high == times else (low + high + 1) // 2
                if self._is_soon(parameter + middle * part.shift, step + middle * steps) == answer:
                    low = middle
                else:
                    high = middle - 1
            times = low
        return times

    # Several blocks at once.

    def _again(
        self, part: HookPart, index: int, number: int, times: int, before: Before, state: Pass, length: int
    ) -> None:
        """The state after ``times`` more blocks that act as the one before ``number``."""
        begin, end = self._range(part, number - 1)
        shift = part.shift
        if self._trace is not None:  # first, for what has been gathered may be for blocks that are over then
            self._take_again(before, shift, times, state)
            self._answers[index][number : number + times] = [self._answers[index][number - 1]] * times
        ends = (begin + shift, begin + times * shift)
        low, high = min(ends), max(ends) + end - begin
        self.status[low:high] = self.status[begin:end] * times
        self.storage[low:high] = self.storage[begin:end] * times
        if self.in_flight:
            for parameter in range(low, high):
                self.in_flight.pop(parameter, None)
        if self.saved or self.detached:
            self._hold_again(begin, end, shift, times)
        forgotten = self.forgotten[before.forgotten :]
        for each in range(1, times + 1) if forgotten else ():
            for position, parameters, size in forgotten:
                moved = tuple([parameter + each * shift for parameter in parameters])
                self.forgotten.append((position + each * length, moved, size))
        self.level += times * (self.level - before.level)
        state.available_elements += times * (state.available_elements - before.available)
        state.step += times * (state.step - before.step)

    def _hold_again(self, begin: int, end: int, shift: int, times: int) -> None:
        for parameter in range(begin, end):
            size = self.detached.get(parameter)
            for each in range(1, times + 1):
                moved = parameter + each * shift
                (self.saved.add if parameter in self.saved else self.saved.discard)(moved)
                if size is None:
                    self.detached.pop(moved, None)
                else:
                    self.detached[moved] = size

    def _take_again(self, before: Before, shift: int, times: int, state: Pass) -> None:
        """What the blocks take from the queue, and gather of it."""
        taken = len(self._queue) - len(state.queue)
        entries = self._queue[taken : taken + times * (taken - before.taken)]
        state.fetched_for.update(entries)
        for _ in entries:
            state.queue.popleft()
        flying, status, storage = self.in_flight, self.status, self.storage
        for batch in self._made:
            if not batch.outstanding:
                continue
            parameters = batch.parameters
            shape = batch.shape = batch.shape or tuple([each - parameters[0] for each in parameters])
            rest = (batch.flat_bytes, batch.outstanding, batch.split, batch.staged_bytes, shape)
            moved = parameters
            for _ in range(times):
                moved = [parameter + shift for parameter in moved]
                again = Batch(moved, *rest)
                for parameter, copy in zip(parameters, moved):  # noqa: B905  # as many
                    status[copy] = status[parameter]
                    storage[copy] = storage[parameter]
                    flying[copy] = again

    def _complete_from(self, trace: PartsTrace) -> None:
        """As :meth:`_complete_trace`."""
        self._trace = []
        self._segments, self._rows = trace.segments, trace.rows
        self._queue, self._uses, self._elements_before = trace.queue, trace.uses, trace.elements_before

    # Rules that take all parameters at once, where nothing else is to be told of them.

    def partition_all(self) -> int:
        if self.in_flight or self.saved:
            return super().partition_all()
        start = self.level
        for users in filter(None, self.active):
            users.clear()
        self._change(-sum(self.storage))
        self.status, self.storage = [0] * len(self.status), [0] * len(self.storage)
        return self.level - start

    def gather_persistent(self) -> int:
        start, status, storage, padded = self.level, self.status, self.storage, self.padded
        size_of = {numel: self._bytes(numel) if self.gathers else 0 for numel in set(padded)}
        total = 0
        for parameter in self.persistent:
            if not status[parameter]:
                status[parameter] = 2
                size = storage[parameter] = size_of[padded[parameter]]
                total += size
        self._change(total)
        return self.level - start

    # Rules that are listened to.

    def _gather(self, parameters: list[int], state: Pass) -> None:
        super()._gather(parameters, state)
        self._made.append(self.in_flight[parameters[0]])

    def _reused_soon(self, parameter: int, step: int) -> bool:
        self._asked.append((parameter, step))
        return self._is_soon(parameter, step)

    def _is_soon(self, parameter: int, step: int) -> bool:
        return super()._reused_soon(parameter, step)

    def _releasable(self, module: Module, state: Pass) -> frozenset[int]:
        answers = self._of_block
        if answers is None:
            return super()._releasable(module, state)
        place, self._asks = self._asks, self._asks + 1
        if place == len(answers):
            found = super()._releasable(module, state)
            answers.append(tuple([parameter in found for parameter in module.parameters]))
            return found
        return frozenset(compress(module.parameters, answers[place]))

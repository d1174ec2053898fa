"""Ahead: how far stage 3's host runs ahead of communication that is late, and which blocks it can then not reuse yet.

A block that was used on a second stream (``record_stream``) comes back when an event of that stream is seen done
(c10/cuda/CUDACachingAllocator.cpp, ``process_events``). What computes with a gathered parameter is done once the gather
is. How late that is depends on the network; how late it *can* be does not, for DeepSpeed waits: when more than two
fetched parameters are still to come, for the oldest of them (partitioned_param_coordinator.py,
``__ongoing_fetch_events``); before a bucket of gradients is reduced, likewise (stage3.py, ``param_reduce_events``); and
for all of it at the end of a backward pass (``independent_gradient_partition_epilogue``) and in the step. Followed here
are gathers and reductions of which none is done before the host waits for it, and computation that is done as soon as
what it needs is there. How late computation itself can be, DeepSpeed does not limit in a forward pass.

What communicates is done in the order in which it was asked for. Points of that order are numbers of operations of a
trace, of the next request or release at the time.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

#: ``__max_ongoing_fetch_events`` and ``max_param_reduce_events``.
MOST_UNDER_WAY = 2


class Kind(Enum):
    """What the coordinator does beside taking and giving back memory."""

    ASKED = "a gather is asked for"
    WAITS = "a parameter of it is needed"
    FETCHED = "the streams wait for it"


class Signal(int):
    """A change of 0 bytes: what happens with the gather ``number`` between two changes."""

    kind: Kind
    number: int

    @classmethod
    def of(cls, kind: Kind, number: int) -> Signal:
        self = cls(0)
        self.kind, self.number = kind, number
        return self


class Ahead:
    """Follows what communication is asked for and how much of it the host has waited for.

    Attributes:
        kept: of each release of a block that a second stream may still use, the point that must be reached first.
        waits: (operation, point): before the one is taken, the other is reached.
    """

    def __init__(self) -> None:
        self.kept: dict[int, int] = {}
        self.waits: list[tuple[int, int]] = []
        self._reached = 0
        self._asked: dict[int, int] = {}  # of each gather its point
        self._fetched = 0  # what the computation waits for
        self._reduced = 0  # what the stream of the reductions waits for
        self._fetches: deque[int] = deque()
        self._reductions: deque[int] = deque()

    def hear(self, signal: Signal, now: int) -> None:
        """A signal of the coordinator, before operation ``now``."""
        if signal.kind is Kind.ASKED:
            self._asked[signal.number] = now
        elif signal.kind is Kind.WAITS:
            self._throttle(self._fetches, now)
        else:
            self._fetched = max(self._fetched, self._asked.get(signal.number, 0))
            self._fetches.append(self._fetched)

    def before_reduction(self, now: int) -> None:
        """A bucket is about to be reduced."""
        self._throttle(self._reductions, now)

    def after_reduction(self, now: int) -> None:
        """Its event is recorded."""
        self._reduced = now
        self._reductions.append(now)

    def released(self, operation: int, *, gradient: bool) -> None:
        """``operation`` gives back a block that a second stream uses: for a gradient that of the reductions, which
        has waited for the computation (``__add_grad_to_ipg_bucket``), and else the computation's."""
        point = max(self._fetched, self._reduced) if gradient else self._fetched
        if point > self._reached:
            self.kept[operation] = point

    def catch_up(self, now: int) -> None:
        """The host waits for the device."""
        self._wait(now, now)

    def repeat(self, begin: int, end: int) -> None:
        """What was from ``begin`` to ``end`` comes again."""
        shift = end - begin
        kept = [(number, point) for number, point in self.kept.items() if begin <= number < end]
        self.kept |= {number + shift: point + shift for number, point in kept}
        self.waits += [(at + shift, point + shift) for at, point in self.waits if begin <= at < end]

    def _throttle(self, events: deque[int], now: int) -> None:
        while events and events[0] <= self._reached:
            events.popleft()
        if len(events) > MOST_UNDER_WAY:
            self._wait(now, events.popleft())

    def _wait(self, now: int, point: int) -> None:
        if point > self._reached:
            self._reached = point
            self.waits.append((now, point))

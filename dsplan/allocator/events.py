"""Freed blocks that other streams may still use: each waits for one event per stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dsplan.allocator.blocks import PENDING, Block


class PendingEvents:
    """The outstanding events (``cuda_events``), a queue for each stream; ``free_block`` gets a block after its last.

    Without ``make_event`` and ``is_done`` an event is done when it is first asked for.
    """

    def __init__(self, free_block: Callable[[Block], None]) -> None:
        self._free_block = free_block
        self.queues: dict[int, deque[tuple[object, Block]]] = {}
        self.make_event: Callable[[int], object] | None = None
        self.is_done: Callable[[object], bool] | None = None

    def insert(self, block: Block, streams: list[int]) -> None:
        """Leave a freed block pending behind an event on each of the streams (``insert_events``)."""
        block.state = PENDING
        block.num_events = len(streams)
        for stream in streams:
            event = None if self.make_event is None else self.make_event(stream)
            self.queues.setdefault(stream, deque()).append((event, block))

    def process(self) -> None:
        """Free blocks whose events are done, in order for each stream up to the first that is not
        (``process_events``)."""
        for stream, queue in list(self.queues.items()):
            while queue and (self.is_done is None or self.is_done(queue[0][0])):
                self._done(queue.popleft()[1])
            if not queue:
                del self.queues[stream]

    def synchronize(self) -> None:
        """Wait for every event (``synchronize_and_free_events``)."""
        for queue in self.queues.values():
            for _, block in queue:
                self._done(block)
        self.queues.clear()

    def _done(self, block: Block) -> None:
        block.num_events -= 1
        if block.num_events == 0:
            self._free_block(block)

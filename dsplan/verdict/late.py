"""Late: a trace through the replay of torch's allocator where communication is as late as the host lets it be.

It says what an allocator with room comes to reserve at stage 3. Short of memory it waits for its streams and takes back
what they held (c10/cuda/CUDACachingAllocator.cpp, ``synchronize_and_free_events``), so that no verdict depends on it.
"""

from __future__ import annotations

from dsplan.allocator import AllocatorSettings, Block, CachingAllocator
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Trace
from dsplan.verdict.pressure import DEFAULT, ends_until_repeated


def late_reserved_bytes(trace: Trace, settings: AllocatorSettings = DEFAULT) -> int:
    """What the allocator reserves at most, with as much of the device as it asks for."""
    replay = LateReplay(trace, settings)
    for end in ends_until_repeated(trace, replay.allocator):
        replay.run_to(end)
    return replay.allocator.peak_reserved_bytes


class LateReplay:
    """A replay that keeps released blocks until the host has waited for what used them.

    ``allocator`` is its allocator, which has as much of the device as it asks for.
    """

    def __init__(self, trace: Trace, settings: AllocatorSettings = DEFAULT) -> None:
        self.allocator = CachingAllocator(settings=settings)
        self._trace = trace
        self._blocks: list[Block | None] = [None] * len(trace.operations)
        self._kept: list[tuple[int, Block]] = []
        self._next = 0
        self._waits = 0  # of the trace's, how many were reached

    def run_to(self, end: int) -> None:
        """The operations before ``end``."""
        waits = self._trace.waits
        while self._waits < len(waits) and waits[self._waits][0] < end:
            operation, point = waits[self._waits]
            self._waits += 1
            self._operate(operation)
            self._give_back(point)
        self._operate(end)

    def _operate(self, end: int) -> None:
        allocate, free = self.allocator.allocate, self.allocator.free
        operations, points, blocks = self._trace.operations, self._trace.kept, self._blocks
        for number in range(self._next, end):
            size, other = operations[number]
            if size >= 0:
                blocks[number] = allocate(size, other)
            elif size == RELEASE:
                block = blocks[other]
                assert block is not None
                if number in points:
                    self._kept.append((points[number], block))
                else:
                    free(block)
            elif size == EMPTY_CACHE:
                self._give_back(end)
                self.allocator.empty_cache()
        self._next = end

    def _give_back(self, point: int) -> None:
        """What waited for communication to reach ``point``."""
        kept, self._kept = self._kept, []
        for needed, block in kept:
            if needed <= point:
                self.allocator.free(block)
            else:
                self._kept.append((needed, block))

"""Ladder: one setting that is climbed by micro batch, what is known of it, and what should be tried next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.gpu.ladder_settings import Setting

SURVIVED, DIED, FAILED = "survived", "died", "failed"
#: Rungs of one climb, at most: it ends with the first that dies.
AT_ONCE = 6
#: Failures for another reason than memory after which a ladder is given up.
PATIENCE = 2


@dataclass(kw_only=True)
class Ladder:
    """One setting.

    Attributes:
        secret: its results go to the file that stays closed.
        called_fits: the largest micro batch that was called ``fits`` when the climb began; None: it was not asked.
        first: with which the first climb begins.
        host_bytes: what its ranks need of the host, with room to spare.
        rungs: results by micro batch.
        failures: for another reason than memory; a rung that failed is tried once more.
        is_running: whether a climb is under way.
    """

    setting: Setting
    secret: bool
    called_fits: int | None
    first: int
    host_bytes: int
    rungs: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    is_running: bool = False

    def outcomes(self, outcome: str) -> list[int]:
        return [size for size, rung in self.rungs.items() if rung["outcome"] == outcome]

    def take(self, found: dict[str, Any]) -> None:
        """Keep the result of a rung; one that failed is kept as a failure, and as a rung the second time."""
        size = found["micro_batch_size"]
        if found["outcome"] == FAILED:
            again = any(failure["micro_batch_size"] == size for failure in self.failures)
            self.failures.append(found)
            if not again:
                return
        self.rungs[size] = found

    def bracket(self) -> tuple[int, int | None]:
        """The largest that survived below the smallest that died (0: none has), and that one (None: none has)."""
        died = min(self.outcomes(DIED), default=None)
        lived = [size for size in self.outcomes(SURVIVED) if died is None or size < died]
        return max(lived, default=0), died

    @property
    def is_closed(self) -> bool:
        low, high = self.bracket()
        return high == low + 1

    def wanted(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(urgency, micro batches of one climb, rising) of what should be tried next; 0 is most urgent.

        Upwards from just below what was predicted until one dies; where already the first died, from further and
        further below. Then the neighbours of the edge, because what fragments need not fragment more with every sample.
        """
        if self.is_running or len(self.failures) > PATIENCE:
            return
        low, high = self.bracket()
        if not self.rungs:
            climbs = [(0, range(self.first, self.first + AT_ONCE))]
        elif high is None:
            climbs = [(0, range(low + 1, low + 1 + AT_ONCE))]
        elif low + 1 < high:
            climbs = [(0, range(max(low + 1, high - 2 ** len(self.outcomes(DIED))), high))]
        else:
            climbs = [(1, range(max(low - 1, 1), low)), (2, range(high + 1, high + 2))]
        for urgency, sizes in climbs:
            if left := tuple(size for size in sizes if size not in self.rungs):
                yield urgency, left


def document(ladder: Ladder) -> dict[str, Any]:
    """What is kept of a ladder."""
    setting, (low, high) = ladder.setting, ladder.bracket()
    return {
        "name": setting.name,
        "cap_bytes": setting.cap_bytes,
        "allocator": setting.allocator,
        "ranks": setting.case.gpus,
        "devices": setting.case.cards,
        "steps": setting.case.steps,
        "called_fits": ladder.called_fits,
        "largest_that_lived": low,
        "smallest_that_died": high,
        "failures": ladder.failures,
        "rungs": [rung for _, rung in sorted(ladder.rungs.items())],
    }

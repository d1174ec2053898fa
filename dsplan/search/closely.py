"""Asking the replay of the allocator (``dsplan estimate``'s verdict): what the closed bound refuses may well live.

The bound grants every peak the fragmentation that runs have needed at most, also one of a few large flat tensors in
the update, which hardly fragments. A replay takes a second or more, so only what would be the fastest is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dsplan.estimate import estimate
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.search.memory import Weight
from dsplan.search.result import Candidate
from dsplan.verdict.judge import FITS

#: Replays that a search asks for at most, and the share of a micro batch that is tried after one that does not live.
_REPLAYS, _NEXT = 8, 0.85


def lives(model: ModelShape, candidate: Candidate) -> bool:
    """Whether the replay says that the candidate fits."""
    (row,) = estimate(model, [candidate.plan], candidate.cluster, ladder=False).plans
    return row.verdict == FITS


def reconsidered(
    model: ModelShape,
    plans: Iterable[Plan],
    sizes: Sequence[int],
    *,
    weight: Callable[[Plan, int], Weight],
    timed: Callable[[Plan, int], Candidate | None],
    best: float,
) -> list[Candidate]:
    """Candidates that only the bound refuses, that are faster than ``best`` tokens a second, and that live.

    Args:
        model: what is trained.
        plans: the strategies.
        sizes: the micro batches, smallest first.
        weight: the memory of a plan with a micro batch.
        timed: the candidate of a plan with a micro batch.
        best: tokens a second of the best that the bound allows.
    """
    tried = []
    for plan in plans:
        within = [size for size in _within(plan, sizes, weight) if not weight(plan, size).fits]
        tried += [one for size in within if (one := timed(plan, size)) is not None and one.tokens_per_s > best]
    tried.sort(key=lambda one: (-one.tokens_per_s, one.plan.name))
    refused: dict[str, float] = {}
    for _ in range(_REPLAYS):
        left = [one for one in tried if _size(one) < refused.get(one.plan.name, float("inf"))]
        if not left:
            break
        if lives(model, left[0]):
            return left[:1]  # nothing that is left is faster
        refused[left[0].plan.name] = _NEXT * _size(left[0])
    return []


def _size(candidate: Candidate) -> int:
    return candidate.plan.workload.micro_batch_size


def _within(plan: Plan, sizes: Sequence[int], weight: Callable[[Plan, int], Weight]) -> Sequence[int]:
    """The micro batches whose tensors alone fit: all up to the largest, since memory never falls with a sample more."""

    def enough(size: int) -> bool:
        one = weight(plan, size)
        return one.headroom_bytes >= 0 and not one.short_of_host

    low, high = -1, len(sizes)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if enough(sizes[middle]) else (low, middle)
    return sizes[: low + 1]

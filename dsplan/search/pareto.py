"""The Pareto front of memory against speed."""

from __future__ import annotations

from collections.abc import Iterable

from dsplan.search.result import Candidate


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those than which no other is at least as fast in less memory or faster in as much; smallest first.

    Every candidate must know its ``device_bytes``.
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=_smallest_first):
        if not kept or candidate.tokens_per_s > kept[-1].tokens_per_s:
            kept.append(candidate)
    return kept


def spread(kept: list[Candidate], most: int) -> list[Candidate]:
    """At most ``most`` of a front, both ends with it."""
    if len(kept) <= most:
        return kept
    last = len(kept) - 1
    return [kept[round(index * last / (most - 1))] for index in range(most)]


def _smallest_first(candidate: Candidate) -> tuple[int, float, str]:
    if candidate.device_bytes is None:
        raise ValueError(f"{candidate.plan.name}: its memory is not known")
    return candidate.device_bytes, -candidate.tokens_per_s, candidate.plan.name

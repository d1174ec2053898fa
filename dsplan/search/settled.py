"""What is as fast as the fastest, and which of that is taken."""

from __future__ import annotations

from dsplan.search.result import Candidate

#: Candidates that are closer than this are as fast as each other: so far apart may measurements of one step lie
#: (tests/data/regret_repeats.json).
ALIKE = 0.02


def settled(ordered: list[Candidate], objective: str) -> list[Candidate]:
    """``ordered``, best first, but first of those that are as good as the best the one of the lowest stage, no offload.

    It sends less and has fewer hooks: what it takes depends least on the host and on the links, which differ more from
    machine to machine than the device does. Only the objective ``speed`` is so uncertain.
    """
    if objective != "speed":
        return ordered
    alike = [one for one in ordered if one.tokens_per_s >= (1 - ALIKE) * ordered[0].tokens_per_s]
    first = min(alike, key=lambda one: (one.plan.zero.offloads_optimizer, one.plan.zero.stage), default=None)
    return ordered if first is None else [first, *(one for one in ordered if one is not first)]

"""Ladder: the largest micro batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsplan.hardware import Cluster
    from dsplan.model import ModelShape
    from dsplan.plan import Plan
    from dsplan.verdict.walked import Walked

#: Told what is tried next.
OnRung = Callable[[str], None]

#: Micro batches beyond this are not looked for.
LARGEST = 2**16
#: Tries that go down one by one.
ONE_BY_ONE = 4


def largest_that_fits(fits: Callable[[int], bool], *, known: int = 1, known_fits: bool | None = None) -> int:
    """The largest n of at least 1 for which ``fits(n)`` holds, 0 when not even 1 does.

    ``fits`` must not hold again once it has failed. ``known`` is a value that was tried already.
    """
    low, high = 0, LARGEST + 1  # low fits (or is 0), high does not
    if known_fits is not None:
        if known_fits:
            low = known
        else:
            high = known
    step = max(low, 1)
    while low + 1 < high:
        tried = min(low + step, high - 1) if high > LARGEST else (low + high) // 2
        if fits(tried):
            low = tried
            step *= 2
        else:
            high = tried
    return low


def largest_below(
    bound: int, fits: Callable[[int], bool], *, low: int = 0, might_fit: Callable[[int], bool] | None = None
) -> int:
    """The largest n of at most ``bound`` for which ``fits(n)`` holds; ``low`` is known to hold, or is 0.

    ``might_fit`` is a cheaper question to which ``fits`` never says yes alone: the edge is looked for with it, and only
    what is found is asked in full.

    Tries start at ``bound``, near which the answer lies, and go down: one by one at first, because what fits need not
    be all that is smaller, then in growing steps, at last between the last two.
    """
    while True:
        found = _edge_below(bound, fits if might_fit is None else might_fit, low=low)
        if might_fit is None or found <= low or fits(found):
            return found
        bound = found - 1


def _edge_below(bound: int, fits: Callable[[int], bool], *, low: int) -> int:
    high, step = bound + 1, 1  # high does not fit
    while low + 1 < high:
        tried = max(high - step, low + 1)
        if fits(tried):
            low = tried
            break
        high = tried
        if bound - tried >= ONE_BY_ONE - 1:
            step *= 2
    while low + 1 < high:
        tried = (low + high) // 2
        if fits(tried):
            low = tried
        else:
            high = tried
    return low


def largest_batch(
    model: ModelShape, plan: Plan, cluster: Cluster, *, fits: bool, exactly: bool, on_rung: OnRung | None
) -> int:
    """The largest micro batch that is called ``fits``.

    ``exactly``: by replays, below what the allocated peak allows. Else by the closed bound on fragmentation, which the
    plan's own verdict (``fits``) overrules.
    """

    from dsplan.verdict.walked import Walked

    def walked(micro_batch_size: int) -> Walked:
        workload = replace(plan.workload, micro_batch_size=micro_batch_size)
        return Walked(model, replace(plan, workload=workload), cluster)

    known = plan.workload.micro_batch_size
    if exactly:
        return _climb(walked, known, f"{plan.name}: micro batch", fits=fits, on_rung=on_rung)
    bound = largest_that_fits(lambda size: walked(size).is_bounded(), known=known, known_fits=True if fits else None)
    return bound if fits else min(bound, known - 1)


def longest_sequence(model: ModelShape, plan: Plan, cluster: Cluster, *, fits: bool, on_rung: OnRung | None) -> int:
    """The longest sequence that is called ``fits``, of at most the model's positions."""

    from dsplan.verdict.walked import Walked

    def walked(sequence_length: int) -> Walked:
        workload = replace(plan.workload, sequence_length=sequence_length)
        return Walked(model, replace(plan, workload=workload), cluster)

    known, most = plan.workload.sequence_length, model.max_position_embeddings
    return _climb(walked, known, f"{plan.name}: sequence", fits=fits, most=most, on_rung=on_rung)


def _climb(
    walked: Callable[[int], Walked],
    known: int,
    what: str,
    *,
    fits: bool,
    most: int | None = None,
    on_rung: OnRung | None,
) -> int:
    """The largest number, of at most ``most``, with which a plan is called ``fits``, by replays of the allocator.

    The allocated peak bounds it. ``fits`` is the verdict with the number ``known``.
    """
    rungs: dict[int, Walked] = {}

    def rung(number: int) -> Walked:
        """The last one is asked twice, as what may fit and as what does; traces are too large to keep them all."""
        if number not in rungs:
            if on_rung is not None:
                on_rung(f"{what} {number:,}")
            rungs.clear()
            rungs[number] = walked(number)
        return rungs[number]

    bound = largest_that_fits(
        lambda number: (most is None or number <= most) and walked(number).is_possible(),
        known=known,
        known_fits=True if fits else None,
    )
    return largest_below(
        bound,
        lambda number: rung(number).fits(),
        low=known if fits else 0,
        might_fit=lambda number: rung(number).might_fit(),
    )

"""Ladder: the largest micro batch that fits."""

from __future__ import annotations

from collections.abc import Callable

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


def largest_below(bound: int, fits: Callable[[int], bool], *, low: int = 0) -> int:
    """The largest n of at most ``bound`` for which ``fits(n)`` holds; ``low`` is known to hold, or is 0.

    Tries start at ``bound``, near which the answer lies, and go down: one by one at first, because what fits need not
    be all that is smaller, then in growing steps, at last between the last two.
    """
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

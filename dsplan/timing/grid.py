"""Grid: seconds measured at some sizes, read at any size.

Between two sizes the logarithm of the time is a straight line in the logarithm of the size. Beyond the
largest, time grows with the work; below the smallest, it is that of the smallest, which is the launch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TypeVar

_T = TypeVar("_T", int, float)


class Line:
    """Seconds by one size; ``asked``: calls of small sizes were paced by the host (:func:`of_the_device`)."""

    def __init__(self, points: Sequence[tuple[float, float]], *, asked: bool = False) -> None:
        self._scales = asked
        ordered = sorted(points)
        if asked:
            seconds_by_size = of_the_device({(size,): seconds for size, seconds in points})
            ordered = sorted((size, seconds) for (size,), seconds in seconds_by_size.items())
        self._sizes = [math.log(size) for size, _ in ordered]
        self._seconds = [math.log(seconds) for _, seconds in ordered]

    def at(self, size: float) -> float:
        """Seconds at ``size`` (more than 0; no work takes no time)."""
        if size <= 0:
            return 0.0
        where, sizes, seconds = math.log(size), self._sizes, self._seconds
        if where <= sizes[0]:
            return math.exp(seconds[0] + (where - sizes[0] if self._scales else 0.0))
        if where >= sizes[-1]:
            return math.exp(seconds[-1] + where - sizes[-1])
        index = bisect_right(sizes, where)
        share = (where - sizes[index - 1]) / (sizes[index] - sizes[index - 1])
        return math.exp(seconds[index - 1] + share * (seconds[index] - seconds[index - 1]))


class Grid:
    """Seconds by several sizes whose product is the work.

    A combination that was not measured gets the time of the nearest measured one with no size larger, times the
    ratio of the work. ``asked``: calls of small sizes were paced by the host (:func:`of_the_device`); with it, or with
    ``scales``, time falls with the work below the smallest size too.
    """

    def __init__(self, points: Mapping[tuple[int, ...], float], *, asked: bool = False, scales: bool = False) -> None:
        self._scales = asked or scales
        points = of_the_device(points) if asked else points
        axes = zip(*points, strict=True)
        self._values = [sorted(set(axis)) for axis in axes]
        self._logs = [[math.log(value) for value in axis] for axis in self._values]
        self._cells: dict[tuple[int, ...], float] = {}
        for indices in product(*(range(len(axis)) for axis in self._values)):
            key = tuple(axis[index] for axis, index in zip(self._values, indices, strict=True))
            self._cells[indices] = math.log(points[key] if key in points else _from_smaller(points, key))

    def at(self, *sizes: float) -> float:
        """Seconds at these sizes, each more than 0."""
        corners: list[tuple[int, float]] = []  # of each axis: the lower index, and how far on towards the next
        extra = 0.0
        for size, logs in zip(sizes, self._logs, strict=True):
            where = math.log(size)
            if where <= logs[0]:
                corners.append((0, 0.0))
                extra += where - logs[0] if self._scales else 0.0
            elif where >= logs[-1]:
                corners.append((len(logs) - 1, 0.0))
                extra += where - logs[-1]
            else:
                index = bisect_right(logs, where) - 1
                corners.append((index, (where - logs[index]) / (logs[index + 1] - logs[index])))
        total = 0.0
        for steps in product((0, 1), repeat=len(corners)):
            weight = 1.0
            for (_, share), step in zip(corners, steps, strict=True):
                weight *= share if step else 1.0 - share
            if weight:
                cell = tuple(index + step for (index, _), step in zip(corners, steps, strict=True))
                total += weight * self._cells[cell]
        return math.exp(total + extra)


def _work(sizes: Sequence[float]) -> float:
    return math.prod(sizes)


def _from_smaller(points: Mapping[tuple[int, ...], float], key: tuple[int, ...]) -> float:
    smaller = [known for known in points if all(a <= b for a, b in zip(known, key, strict=True))]
    nearest = max(smaller or list(points), key=_work)
    return points[nearest] * _work(key) / _work(nearest)


#: How much longer than the shortest a call takes that is not paced by the host: asking takes a little longer or
#: shorter from operator to operator and time to time.
_ABOVE = 2.0


def of_the_device(
    points: Mapping[tuple[_T, ...], float],
    work: Callable[[Sequence[float]], float] = _work,
    shortest: float | None = None,
) -> dict[tuple[_T, ...], float]:
    """Seconds that the device needs, from seconds of calls that followed each other without a wait.

    Such a call takes at least what the host needs to ask for one: that is the time of the smallest sizes. What took no
    longer is at most that, and else what the nearest larger combination took, by the ratio of the work. ``shortest``:
    the least that such a call took, where ``points`` may lack the small sizes; None takes their least.
    """
    asking = _ABOVE * min([*points.values(), *([] if shortest is None else [shortest])])
    told = {key: seconds for key, seconds in points.items() if seconds >= asking}

    def seconds_of(key: tuple[_T, ...]) -> float:
        larger = [known for known in told if all(a >= b for a, b in zip(known, key, strict=True))]
        if key in told or not larger:
            return points[key]
        nearest = min(larger, key=work)
        return min(points[key], told[nearest] * work(key) / work(nearest))

    return {key: seconds_of(key) for key in points}

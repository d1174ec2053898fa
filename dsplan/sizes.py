"""Sizes: those of many tensors in a row, of which stretches repeat, so that sums need not visit each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain

from dsplan.kernels import Kernels


class Sizes(tuple[int, ...]):
    """Sizes of tensors in a row, of which stretches repeat, so that sums need not visit each.

    Attributes:
        runs: (sizes, how often they come one after the other).
        sum, not_0: of all, and how many are not 0.
    """

    runs: tuple[tuple[tuple[int, ...], int], ...]
    sum: int
    not_0: int
    _scaled: dict[int, Scaled]

    @classmethod
    def of(cls, runs: Iterable[tuple[tuple[int, ...], int]]) -> Sizes:
        """The sizes of all runs in order."""
        kept = tuple(runs)
        flat: list[int] = []
        total = not_0 = 0
        for sizes, times in kept:
            flat += sizes * times
            total += sum(sizes) * times
            not_0 += (len(sizes) - sizes.count(0)) * times
        self = cls(flat)
        self.runs, self.sum, self.not_0 = kept, total, not_0
        self._scaled = {}
        return self

    def map(self, change: Callable[[int], int]) -> Sizes:
        """Each size changed by the same rule."""
        return Sizes.of((tuple([change(size) for size in sizes]), times) for sizes, times in self.runs)

    def each(self, change: Callable[[int], int]) -> list[int]:
        """Of each size what the same rule makes of it."""
        return [found for sizes, times in self.runs for found in [change(size) for size in sizes] * times]

    def times(self, width: int) -> Scaled:
        """Each size ``width`` times as large."""
        found = self._scaled.get(width)
        if found is None:
            found = self._scaled[width] = Scaled(self.runs, width, (width * self.sum, self.not_0))
        return found

    @cached_property
    def largest(self) -> int:
        return max(max(sizes) for sizes, times in self.runs if sizes and times)

    @cached_property
    def _places(self) -> tuple[list[int], list[int], list[list[int]]]:
        """Of each run the index of its first tensor, the sum of all before that, and the sums before each of the run's
        sizes and after the last."""
        firsts, begins, within = [0], [0], []
        for sizes, times in self.runs:
            within.append([0, *accumulate(sizes)])
            firsts.append(firsts[-1] + len(sizes) * times)
            begins.append(begins[-1] + within[-1][-1] * times)
        return firsts[:-1], begins[:-1], within

    def begin(self, index: int) -> int:
        """The sum of those before one."""
        firsts, begins, within = self._places
        run = bisect_right(firsts, index) - 1
        sums = within[run]
        times, place = divmod(index - firsts[run], len(sums) - 1)
        return begins[run] + times * sums[-1] + sums[place]

    def span(self, element: int) -> tuple[int, int, int]:
        """Of the tensor in which an element is, counted over all: its index, and the sums before it and up to its end.

        Beyond the last one how many there are, and twice the sum of all.
        """
        if element >= self.sum:
            return len(self), self.sum, self.sum
        firsts, begins, within = self._places
        run = bisect_right(begins, element) - 1
        sums = within[run]
        times, rest = divmod(element - begins[run], sums[-1])
        place = bisect_right(sums, rest)
        begin = element - rest
        return firsts[run] + times * (len(sums) - 1) + place - 1, begin + sums[place - 1], begin + sums[place]


class Scaled(Collection[int]):
    """Sizes that are each ``width`` times as large as others."""

    def __init__(self, runs: tuple[tuple[tuple[int, ...], int], ...], width: int, total: tuple[int, int]) -> None:
        self._runs = runs
        self._width = width
        self._totals: dict[Kernels | None, tuple[int, int]] = {None: total}

    def __len__(self) -> int:
        return sum([len(sizes) * times for sizes, times in self._runs])

    def __iter__(self) -> Iterator[int]:
        return chain(*[[self._width * size for size in sizes] * times for sizes, times in self._runs])

    def __contains__(self, size: object) -> bool:
        return size in list(self)

    def total(self, kernels: Kernels | None) -> tuple[int, int]:
        """Sum of the sizes, each as the device counts it (None: as it is), and how many there are that are not 0."""
        found = self._totals.get(kernels)
        if found is None:
            total = count = 0
            for sizes, times in self._runs:
                of_run, not_0 = total_of([self._width * size for size in sizes], kernels)
                total += of_run * times
                count += not_0 * times
            found = self._totals[kernels] = total, count
        return found


def total_of(sizes: Sequence[int], kernels: Kernels | None) -> tuple[int, int]:
    """Sum of the sizes, each as the device counts it (None: as it is), and how many there are that are not 0."""
    count = len(sizes) - sizes.count(0)
    if kernels is None:
        return sum(sizes), count
    each = {size: kernels.rounded(size) for size in set(sizes)}
    return sum([each[size] for size in sizes]), count

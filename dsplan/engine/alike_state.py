"""How a parameter stands with stage 3, as one number: rows of blocks are compared and copied as slices of lists.

A parameter that is gathered alone has a storage with its padding, one that is gathered with others a storage of its own
size. Of one that is on its way the number tells with which others, counted from it, and whether their common buffer has
been split into storages; so two that stand the same have the same number wherever in the model they are.
"""

from __future__ import annotations

from typing import NamedTuple

PARTITIONED, ALONE, TOGETHER, ON_ITS_WAY_ALONE, FIRST_FLIGHT = range(5)


class Flight(NamedTuple):
    """What is known of a parameter that is gathered with others and has not been waited for.

    Attributes:
        members: all of them in their order, counted from it.
        split: the number of each once the buffer is split.
        is_split: whether it is.
    """

    members: tuple[int, ...]
    split: tuple[int, ...]
    is_split: bool


class Flights:
    """Numbers of parameters that are on their way together."""

    def __init__(self) -> None:
        self._flights: list[Flight] = []
        self._numbers: dict[tuple[int, ...], range] = {}

    def numbers_of(self, parameters: list[int]) -> range:
        """Of each parameter of a gathering that begins; ``parameters`` in their order."""
        first = parameters[0]
        shape = tuple([parameter - first for parameter in parameters])
        found = self._numbers.get(shape)
        if found is None:
            begin, count = FIRST_FLIGHT + len(self._flights), len(shape)
            found = self._numbers[shape] = range(begin, begin + count)
            split = tuple(range(begin + count, begin + 2 * count))
            for is_split in (False, True):
                self._flights += [Flight(tuple([other - place for other in shape]), split, is_split) for place in shape]
        return found

    def __getitem__(self, number: int) -> Flight:
        return self._flights[number - FIRST_FLIGHT]

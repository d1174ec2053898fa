"""Requests: sizes that know which storage they are of, so that a release finds its own.

A walk's events say how many bytes of which term come and go. Where two tensors of one size live at once, it matters
to an allocator which of them goes: the other one keeps its segment. The tape hands one and the same size object to a
storage's beginning and end, so that object can tell; an engine multiplies a parameter's size, which knows its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from itertools import count

from dsplan.kernels import Kernels
from dsplan.units import round_up

_NUMBERS = count()


class Request(int):
    """Bytes of one storage of a program; minus it is the :class:`Release` of that storage."""

    number: int
    release: Release

    def __new__(cls, size: int) -> Request:
        request = super().__new__(cls, size)
        request.number = next(_NUMBERS)
        request.release = Release(-size)
        request.release.number = request.number
        return request

    def __neg__(self) -> Release:
        return self.release


class Release(int):
    """Minus the bytes of the storage ``number``."""

    number: int


class Placed(int):
    """Elements of a parameter, or bytes of a tensor that belongs to it, with its place among all of them."""

    place: int

    @classmethod
    def of(cls, sizes: Iterable[int]) -> tuple[Placed, ...]:
        """The ``sizes`` in their order."""
        return tuple([cls.at(size, place) for place, size in enumerate(sizes)])

    @classmethod
    def at(cls, size: int, place: int) -> Placed:
        """``size`` with a place."""
        found = cls(size)
        found.place = place
        return found

    def __mul__(self, width: int) -> Placed:
        return self.at(int(self) * width, self.place)

    __rmul__ = __mul__

    def __neg__(self) -> Placed:
        return self.at(-int(self), self.place)


class Numbered(Kernels):
    """Kernels that make of every size a :class:`Request`, rounded as the allocator rounds before it looks for a block.

    What of a segment stays with a large tensor is the replay's to find out, so ``whole_segments`` does not hold.
    """

    __slots__ = ()

    @classmethod
    def of(cls, kernels: Kernels) -> Numbered:
        """``kernels``, numbered."""
        values = {field.name: getattr(kernels, field.name) for field in fields(Kernels)}
        return cls(**{**values, "whole_segments": False})

    def rounded(self, size: int) -> int:
        return Request(round_up(size, self.block_bytes))

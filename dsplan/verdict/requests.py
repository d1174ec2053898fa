"""Requests: sizes that know which storage they are of, so that a release finds its own.

A walk's events say how many bytes of which term come and go. Where two tensors of one size live at once, it matters
to an allocator which of them goes: the other one keeps its segment. The tape hands one and the same size object to a
storage's beginning and end, so that object can tell.
"""

from __future__ import annotations

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

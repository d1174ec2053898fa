"""What stage 3's rules look at while a block runs, counted from the block, so that two blocks can be compared."""

from __future__ import annotations

from dataclasses import dataclass

#: A gathering under way: its parameters from the first on, where that is in the block, and how it stands.
Flight = tuple[tuple[int, ...], int, tuple[int, int, bool, int]]
#: Of each parameter the number of the gathering that it is in, or -1; and those gatherings.
Flights = tuple[list[int], list[Flight]]
NO_FLIGHTS: Flights = [], []


@dataclass(frozen=True, slots=True)
class Own:
    """What is known of a block's own parameters: all that the rules look at while it runs.

    Attributes:
        status, storage: as :class:`Coordinator` has them.
        persists: which stay gathered.
        held: which autograd keeps, gathered or alone.
        flights: which are on their way.
        fetched: how many of its entries have been taken from the queue.
    """

    status: list[int]
    storage: list[int]
    persists: bytes
    held: object
    flights: Flights
    fetched: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What there was before a block: its own (``own``), and what it changes.

    Attributes:
        taken: entries of the queue.
        ahead: how the next ones stand, as many as a block has.
        backward: submodules in their backward pass.
    """

    own: Own | None
    taken: int
    ahead: list[int] | None
    available: int
    level: int
    backward: list[int]
    forgotten: int
    step: int

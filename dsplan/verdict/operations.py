"""Operations: what a rank asks of its device, as a list that the allocator's replay takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsplan.ledger import Term

#: What an operation's first number says when it is no size.
RELEASE, EMPTY_CACHE = -1, -2


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a stretch of a trace begins: a step, its phase, and the moment within it."""

    operation: int
    step: str
    phase: str
    moment: str

    @property
    def where(self) -> str:
        """In words: ``backward of the first step, backward of block 3``."""
        step = "" if self.step == self.phase else f" of the {self.step}"  # the initialisation is both
        return f"{self.phase}{step}, {self.moment}"


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests and releases in order.

    Attributes:
        operations: ``(bytes, stream)`` asks for memory, ``(RELEASE, i)`` returns what operation i asked for,
            ``(EMPTY_CACHE, 0)`` empties the allocator's cache.
        terms: of each request its term, by operation; None for the others.
        moments: where steps, phases and moments begin, in order.
        steps: the operation with which each step begins.
        repeats_from: the step from which on all ask for the same.
        kept: of each release of a block that a second stream may still use, the point that must be reached first.
        waits: (operation, point): before the one, the host waits for the other (dsplan/verdict/ahead.py).
    """

    operations: list[tuple[int, int]]
    terms: list[Term | None]
    moments: list[Moment]
    steps: tuple[int, ...] = ()
    repeats_from: int = 0
    kept: dict[int, int] = field(default_factory=dict)
    waits: tuple[tuple[int, int], ...] = ()

    def moment_of(self, operation: int) -> Moment:
        """Where ``operation`` belongs."""
        return next(moment for moment in reversed(self.moments) if moment.operation <= operation)

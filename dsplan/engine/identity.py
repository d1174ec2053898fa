"""Identity: plain numbers in programs for what is released elsewhere than where it was requested.

A tracer knows a tensor of a program by the number that its request and its release share (dsplan.verdict.trace); what
has none it knows by term and size.
"""

from __future__ import annotations

from collections.abc import Callable

from dsplan.activations import STREAM, Program
from dsplan.ledger import Term
from dsplan.tape import ALLOC, FREE, Event


def output_by_size(program: Program) -> Program:
    """A piece whose output, of the residual stream, goes by its size: requested forward, released backward."""
    released = {id(size) for kind, size, what in program.forward if kind == FREE and what is STREAM}
    requested = {id(size) for kind, size, what in program.backward if kind == ALLOC and what is STREAM}
    return Program(
        _plain(program.forward, lambda e: e[0] == ALLOC and e[2] is STREAM and id(e[1]) not in released),
        _plain(program.backward, lambda e: e[0] == FREE and e[2] is STREAM and id(e[1]) not in requested),
    )


def term_by_size(program: Program, term: Term) -> Program:
    """Everything of one term goes by its size."""
    return Program(*(_plain(events, lambda e: e[2] is term) for events in (program.forward, program.backward)))


def _plain(events: tuple[Event, ...], which: Callable[[Event], bool]) -> tuple[Event, ...]:
    return tuple((each[0], int(each[1]), each[2]) if which(each) else each for each in events)

"""Cap: what a plan says of a run that may take only so much, to be held against what happened to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dsplan.kernels import kernels_of
from dsplan.units import format_bytes
from dsplan.verdict.candidates import candidates
from dsplan.verdict.judge import Pressed, press
from dsplan.verdict.operations import RELEASE, Trace
from dsplan.walk import capacity_of, walk

if TYPE_CHECKING:
    from dsplan.hardware import Accelerator
    from dsplan.model import ModelShape
    from dsplan.plan import Plan

#: Terms that are named.
LARGEST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderCap:
    """What the formulas say of a plan under a cap.

    Attributes:
        pressed: the verdict, and what the run can live with.
        peak_bytes: the peak of allocated memory.
        live: what is live where it dies, in bytes by term, largest first; empty where it lives.
    """

    pressed: Pressed
    peak_bytes: int
    live: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        pressed = self.pressed
        text = f"The plan had said: {pressed.verdict}: {format_bytes(self.peak_bytes)} allocated at the peak"
        if pressed.least_bytes is not None:
            text += f", {format_bytes(pressed.least_bytes)} to live with"
        text += f", of {format_bytes(pressed.offered_bytes)}"
        if pressed.moment is not None:
            would = "with one order of addresses it would" if pressed.by_order else "it would"
            text += f"; {would} die in {pressed.moment.where}"
        if self.live:
            text += ", where there are " + ", ".join(f"{format_bytes(size)} of {name}" for name, size in self.live)
        return text + "."


def under_cap(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    accelerator: Accelerator | None,
    cap_bytes: int,
    *,
    allocator: str = "",
) -> UnderCap:
    """What is said of ``plan`` where torch's allocator may take ``cap_bytes``.

    Raises:
        InputError: the allocator's settings are not replayed.
    """
    kernels, capacity = kernels_of(accelerator), capacity_of(accelerator, world_size)
    walked = walk(model, plan, world_size, kernels, capacity_bytes=capacity)
    peak = max(step.peak_bytes for step in walked.steps)
    found = candidates(model, plan, world_size, accelerator, allocator)
    pressed = press(found, peak, cap_bytes, closely=True)
    died = next((death for death in found.deaths(cap_bytes) if death is not None), None)
    if died is None or died[1].died_at is None:
        return UnderCap(pressed=pressed, peak_bytes=peak, live=())
    trace, operation = died[0], died[1].died_at
    if pressed.moment is None:  # the peak alone was enough to say so
        pressed = replace(pressed, moment=trace.moment_of(operation))
    return UnderCap(pressed=pressed, peak_bytes=peak, live=live_terms(trace, operation))


def live_terms(trace: Trace, operation: int) -> tuple[tuple[str, int], ...]:
    """The largest terms that are live just before ``operation``, with their bytes."""
    live: Counter[str] = Counter()
    for number in range(operation):
        size, other = trace.operations[number]
        if size >= 0:
            live[_name(trace, number)] += size
        elif size == RELEASE:
            live[_name(trace, other)] -= trace.operations[other][0]
    return tuple((name, size) for name, size in live.most_common(LARGEST) if size > 0)


def _name(trace: Trace, operation: int) -> str:
    term = trace.terms[operation]
    assert term is not None
    return term.name

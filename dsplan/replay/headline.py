"""How far memory goes with each technique: the largest model of the benchmark's family, out of the planner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dsplan.estimate import FITS
from dsplan.ladder import largest_that_fits
from dsplan.model import ModelShape
from dsplan.replay.cases import Case, case
from dsplan.replay.fitting import Fit, fit

#: The published row of each technique: its ZeRO section, batch and checkpointing are what is searched with.
TECHNIQUES = ("size-ddp", "size-zero2", "size-zero2-offload", "size-zero3", "size-zero3-offload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """One model: its count and shape."""

    num_parameters: int
    num_layers: int
    hidden_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How large a model one technique trains, at the width of the row that was published for it.

    Attributes:
        technique: as ``Case.technique``.
        fits: the largest that fits with room for fragmentation; None when none does.
        can_run: the largest whose expected need fits: the allocator must not fragment.
        stopped_by: why one layer more cannot run.
        published: the largest that was published for it.
    """

    technique: str
    fits: Largest | None
    can_run: Largest | None
    stopped_by: str
    published: int


def reaches(on_progress: Callable[[], None] = lambda: None) -> tuple[Reach, ...]:
    """Every technique on the machine that the benchmark ran on; ``on_progress`` after each."""
    found = []
    for name in TECHNIQUES:
        found.append(_reach(case(name)))
        on_progress()
    return tuple(found)


def _reach(one: Case) -> Reach:
    able = _deepest(one, lambda found: found.can_run)
    fitting = _deepest(one, lambda found: found.verdict == FITS)
    stopped = fit(_of_depth(one, (able.num_layers if able else 0) + 1), one.plan, one.cluster).reason
    return Reach(
        technique=one.technique,
        fits=fitting,
        can_run=able,
        stopped_by=stopped,
        published=one.model.num_parameters,
    )


def _of_depth(one: Case, layers: int) -> ModelShape:
    """The row's model with another number of layers: that is how the benchmark's family grows."""
    assert one.model.shape is not None
    return replace(one.model.shape, num_layers=layers)


def _deepest(one: Case, holds: Callable[[Fit], bool]) -> Largest | None:
    def tried(layers: int) -> bool:
        return holds(fit(_of_depth(one, layers), one.plan, one.cluster))

    # The search starts at the published depth: near the answer, and never far too deep to walk.
    assert one.model.shape is not None
    near = one.model.shape.num_layers
    layers = largest_that_fits(tried, known=near, known_fits=tried(near))
    if not layers:
        return None
    model = _of_depth(one, layers)
    return Largest(num_parameters=model.num_parameters, num_layers=layers, hidden_size=model.hidden_size)

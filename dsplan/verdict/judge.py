"""Judge: whether a plan lives on a device, and with how much to spare.

What a device offers to torch's allocator is its usable memory less what no allocator holds (context, communication).
A plan whose peak of allocated memory is more than that does not fit, and one whose peak is less than half of it fits:
between the two a replay of the allocator decides, with exactly that much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dsplan.units import MIB
from dsplan.verdict.bound import margin, reserved_bound

if TYPE_CHECKING:
    from dsplan.allocator import AllocatorSettings
    from dsplan.verdict.operations import Moment, Trace
    from dsplan.verdict.pressure import Outcome

FITS = "fits"
TIGHT = "tight"
DOES_NOT_FIT = "does not fit"
UNKNOWN = "unknown"

#: A device of this many times the peak is enough without a replay. What runs under a cap have needed: at most 1.3 times
#: (tests/data/ladders.json).
PLENTY = 2.0
#: Steps that fp16 skips at first: in DeepSpeed's defaults the scale of 2^16 is halved at the second overflow
#: (runtime/fp16/loss_scaler.py, hysteresis 2). So did every fp16 run of stages 1 to 3 in tests/data/ladders.json.
SKIPPED = 2
#: Below this many times the peak, smaller micro batches are asked too, and how many.
NEAR, NEIGHBOURS = 1.5, 2
#: The least is found to this part of the peak; closely, to this many bytes.
COARSE, FINE = 0.01, 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressed:
    """What the replays of one plan found, in bytes of torch's allocator on the worst rank.

    Attributes:
        verdict: ``fits``, ``tight`` (as expected it fits, at the bound it does not) or ``does not fit``.
        offered_bytes: what the device has for the allocator.
        reserved_bytes: what an allocator with room enough reserves at most; None where no replay was needed.
        least_bytes: what the run can live with; None where the verdict rests on less.
        margin_bytes: what ``fits`` asks to be left.
        moment: where it dies; None where it lives.
        smaller_that_dies: a smaller micro batch that dies, which makes a verdict ``tight`` (:func:`firmly`).
    """

    verdict: str
    offered_bytes: int
    margin_bytes: int
    reserved_bytes: int | None
    least_bytes: int | None
    moment: Moment | None
    smaller_that_dies: int | None = None

    @property
    def reserved_bound_bytes(self) -> int | None:
        """What the allocator reserves at most, as far as has been seen; None where nothing was replayed."""
        return None if self.reserved_bytes is None else reserved_bound(self.reserved_bytes)

    @property
    def need_bytes(self) -> int | None:
        """What the run is known to live with, as closely as that was asked for; None: nothing was replayed."""
        return self.reserved_bytes if self.least_bytes is None else self.least_bytes


class Candidates:
    """The traces of the ranks that can be the worst, made when they are asked for.

    With ``skips`` each rank is also traced with its first steps skipped, as fp16's are until the loss scale has
    settled: its optimizer states then come when memory is already divided.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        make: Callable[[int, int], Trace],
        settings: AllocatorSettings,
        *,
        skips: bool = False,
    ) -> None:
        self._runs = [(rank, skipped) for rank in ranks for skipped in ((0, SKIPPED) if skips else (0,))]
        self._make = make
        self.settings = settings

    @cached_property
    def traces(self) -> tuple[Trace, ...]:
        return tuple(self._make(rank, skipped) for rank, skipped in self._runs)

    @cached_property
    def idle(self) -> tuple[Outcome, ...]:
        """Each with as much memory as it asks for."""
        from dsplan.verdict.pressure import replay

        return tuple(replay(trace, None, self.settings) for trace in self.traces)

    @cached_property
    def reserved_bytes(self) -> int:
        """What an allocator with room enough reserves at most."""
        return max(outcome.reserved_bytes for outcome in self.idle)

    @cached_property
    def allocated_bytes(self) -> int:
        return max(outcome.allocated_bytes for outcome in self.idle)

    def margin(self, capacity_bytes: int) -> int:
        """What ``fits`` asks to be left of ``capacity_bytes``."""
        several = any(stream > 0 for size, stream in self.traces[0].operations if size >= 0)
        return margin(capacity_bytes, several_streams=several)

    def death(self, capacity_bytes: int) -> tuple[Trace, Outcome] | None:
        """The first rank that dies with this much; None: all live."""
        from dsplan.verdict.pressure import replay

        for trace in self.traces:
            outcome = replay(trace, capacity_bytes, self.settings)
            if not outcome.lived:
                return trace, outcome
        return None

    def least_bytes(self, *, closely: bool) -> int:
        """The least that all of them live with."""
        from dsplan.verdict.pressure import least

        return max(
            least(
                trace,
                dies_bytes=idle.allocated_bytes - 1,
                lives_bytes=idle.reserved_bytes,
                settings=self.settings,
                within=FINE if closely else max(FINE, int(COARSE * idle.allocated_bytes)),
            )
            for trace, idle in zip(self.traces, self.idle, strict=True)
        )


def lives(candidates: Candidates, peak_bytes: int, offered_bytes: int) -> bool:
    """Whether a plan is called ``fits``: the question of the ladder, without the rest of :func:`press`."""
    if peak_bytes > offered_bytes:
        return False
    if peak_bytes * PLENTY <= offered_bytes:
        return True
    bound = offered_bytes - candidates.margin(offered_bytes)
    return candidates.death(bound) is None and candidates.death(offered_bytes) is None


def press(candidates: Candidates, peak_bytes: int, offered_bytes: int, *, closely: bool) -> Pressed:
    """Judge a plan whose peak of allocated memory is ``peak_bytes``.

    Args:
        closely: find ``reserved_bytes`` and ``least_bytes`` also where the verdict does not need them.
    """
    if peak_bytes > offered_bytes or peak_bytes * PLENTY <= offered_bytes:
        return Pressed(
            verdict=DOES_NOT_FIT if peak_bytes > offered_bytes else FITS,
            offered_bytes=offered_bytes,
            margin_bytes=candidates.margin(offered_bytes) if closely else 0,
            reserved_bytes=candidates.reserved_bytes if closely else None,
            least_bytes=candidates.least_bytes(closely=True) if closely else None,
            moment=None,
        )
    asked = candidates.margin(offered_bytes)
    died = candidates.death(offered_bytes)
    if died is not None:
        verdict = DOES_NOT_FIT
    elif candidates.death(offered_bytes - asked) is not None:
        verdict = TIGHT
    else:
        verdict = FITS
    return Pressed(
        verdict=verdict,
        offered_bytes=offered_bytes,
        margin_bytes=asked,
        reserved_bytes=candidates.reserved_bytes,
        least_bytes=candidates.least_bytes(closely=closely)
        if closely or verdict != FITS or candidates.reserved_bytes > offered_bytes
        else None,
        moment=None if died is None else died[0].moment_of(died[1].died_at or 0),
    )


def firmly(
    pressed: Pressed, peak_bytes: int, micro_batch_size: int, of: Callable[[int], tuple[Candidates, int]]
) -> Pressed:
    """``pressed``, but ``tight`` where a slightly smaller micro batch dies on the same device.

    More samples need more memory. Where the pieces fall so that fewer do not fit, the replay lives by chance: what a
    real run does a little differently (the driver's order of addresses, a small tensor) decides.

    Args:
        of: the candidates and the peak with another micro batch.
    """
    offered = pressed.offered_bytes
    if pressed.verdict != FITS or peak_bytes * NEAR <= offered:
        return pressed
    for size in range(micro_batch_size - 1, max(micro_batch_size - 1 - NEIGHBOURS, 0), -1):
        candidates, peak = of(size)
        if not lives(candidates, peak, offered):
            return replace(pressed, verdict=TIGHT, smaller_that_dies=size)
    return pressed

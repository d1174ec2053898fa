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
        late_bytes: the same where communication is late; None likewise.
        least_bytes: what the run can live with; None where the verdict rests on less.
        margin_bytes: what ``fits`` asks to be left.
        moment: where it dies; None where it lives.
        smaller_that_dies: a smaller micro batch that dies, which makes a verdict ``tight`` (:func:`firmly`).
        by_order: it lives with one order of addresses and dies with another, which makes a verdict ``tight``.
    """

    verdict: str
    offered_bytes: int
    margin_bytes: int
    reserved_bytes: int | None
    least_bytes: int | None
    moment: Moment | None
    smaller_that_dies: int | None = None
    by_order: bool = False
    late_bytes: int | None = None

    @property
    def reserved_bound_bytes(self) -> int | None:
        """What the allocator reserves at most, as far as has been seen; None where nothing was replayed."""
        return None if self.reserved_bytes is None else reserved_bound(self.reserved_bytes, self.late_bytes)

    @property
    def doubt(self) -> str:
        """Why it is ``tight`` although it may live with the margin, too; empty where that is not the case."""
        if self.smaller_that_dies is not None:
            return f"micro batch {self.smaller_that_dies} does not fit: it depends on how the pieces fall"
        if not self.by_order or self.moment is None:
            return ""
        return (
            f"where its segments come to lie decides: with one order of addresses it dies in {self.moment.where}, with "
            "the other it lives"
        )

    @property
    def need_bytes(self) -> int | None:
        """What the run is known to live with, as closely as that was asked for; None: nothing was replayed."""
        return self.reserved_bytes if self.least_bytes is None else self.least_bytes


class Candidates:
    """The traces of the ranks that can be the worst, made when they are asked for.

    With ``skips`` each rank is also traced with its first steps skipped, as fp16's are until the loss scale has
    settled: its optimizer states then come when memory is already divided.

    Each trace is replayed with two orders of addresses (:func:`dsplan.verdict.pressure.replay`). torch takes the lower
    of two free blocks of one size, and where segments lie depends on what the process has mapped and given back, which
    no trace knows: gpt2-medium-z0-ckpt at 39 died in a process of its own, as with the order of an empty address space,
    and lived after other rungs, as with the other one; both to the byte (tests/data/card_history.json).
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
        #: Whether addresses rise. Expandable segments have one order.
        self.orders: tuple[bool, ...] = (False,) if settings.expandable_segments else (False, True)
        self._found: dict[tuple[int, bool], dict[int | None, Outcome]] = {}
        self._made: dict[int, Trace] = {}

    def trace(self, number: int) -> Trace:
        """Of a rank, its first steps skipped or not."""
        if number not in self._made:
            self._made[number] = self._make(*self._runs[number])
        return self._made[number]

    @property
    def traces(self) -> tuple[Trace, ...]:
        return tuple(self.trace(number) for number in range(len(self._runs)))

    def outcome(self, number: int, capacity_bytes: int | None, *, rising: bool) -> Outcome:
        """Trace ``number`` with this much; None: with as much as it asks for.

        What never had to give back its cache goes the same way with more.
        """
        from dsplan.verdict.pressure import replay

        found = self._found.setdefault((number, rising), {})
        if capacity_bytes in found:
            return found[capacity_bytes]
        for known in found.values():
            enough = capacity_bytes is None or known.reserved_bytes <= capacity_bytes
            if enough and known.lived and not known.num_retries:
                return known
        found[capacity_bytes] = replay(self.trace(number), capacity_bytes, self.settings, rising=rising)
        return found[capacity_bytes]

    def idle(self, *, rising: bool = False) -> tuple[Outcome, ...]:
        """Each with as much memory as it asks for."""
        return tuple(self.outcome(number, None, rising=rising) for number in range(len(self._runs)))

    @cached_property
    def reserved_bytes(self) -> int:
        """What an allocator with room enough reserves at most."""
        return max(outcome.reserved_bytes for outcome in self.idle())

    @cached_property
    def late_bytes(self) -> int:
        """The same where communication is late, which only stage 3 feels."""
        from dsplan.verdict.late import late_reserved_bytes

        late = [late_reserved_bytes(trace, self.settings) for trace in self.traces if trace.kept]
        return max(self.reserved_bytes, *late) if late else self.reserved_bytes

    @cached_property
    def allocated_bytes(self) -> int:
        return max(outcome.allocated_bytes for outcome in self.idle())

    def margin(self, capacity_bytes: int) -> int:
        """What ``fits`` asks to be left of ``capacity_bytes``."""
        several = any(stream > 0 for size, stream in self.trace(0).operations if size >= 0)
        return margin(capacity_bytes, several_streams=several)

    def death(self, capacity_bytes: int, *, rising: bool = False) -> tuple[Trace, Outcome] | None:
        """The first rank that dies with this much; None: all live."""
        for number in range(len(self._runs)):
            outcome = self.outcome(number, capacity_bytes, rising=rising)
            if not outcome.lived:
                return self.trace(number), outcome
        return None

    def deaths(self, capacity_bytes: int) -> tuple[tuple[Trace, Outcome] | None, ...]:
        """:meth:`death` with each order of addresses."""
        return tuple(self.death(capacity_bytes, rising=rising) for rising in self.orders)

    def lives(self, capacity_bytes: int) -> bool:
        """Whether all of them live with this much, whatever the order of addresses."""
        return all(self.death(capacity_bytes, rising=rising) is None for rising in self.orders)

    def least_bytes(self, *, closely: bool) -> int:
        """The least that all of them live with, whatever the order of addresses."""
        from dsplan.verdict.pressure import least

        found = 0
        for rising in self.orders:
            for number in range(len(self._runs)):
                idle = self.outcome(number, None, rising=rising)
                dies = idle.allocated_bytes - 1
                if found > dies:
                    if self.outcome(number, found, rising=rising).lived:
                        continue
                    dies = found
                found = least(
                    self.trace(number),
                    dies_bytes=dies,
                    lives_bytes=idle.reserved_bytes,
                    settings=self.settings,
                    within=FINE if closely else max(FINE, int(COARSE * idle.allocated_bytes)),
                    rising=rising,
                )
        return found


def might_live(candidates: Candidates, peak_bytes: int, offered_bytes: int) -> bool:
    """Whether a plan lives with the margin less, without which :func:`lives` does not hold: half of its replays."""
    if peak_bytes > offered_bytes:
        return False
    return peak_bytes * PLENTY <= offered_bytes or candidates.lives(offered_bytes - candidates.margin(offered_bytes))


def lives(candidates: Candidates, peak_bytes: int, offered_bytes: int) -> bool:
    """Whether a plan is called ``fits``: the question of the ladder, without the rest of :func:`press`."""
    if not might_live(candidates, peak_bytes, offered_bytes):
        return False
    return peak_bytes * PLENTY <= offered_bytes or candidates.lives(offered_bytes)


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
            late_bytes=candidates.late_bytes if closely else None,
            least_bytes=candidates.least_bytes(closely=True) if closely else None,
            moment=None,
        )
    asked = candidates.margin(offered_bytes)
    deaths = candidates.deaths(offered_bytes)
    died = next((death for death in deaths if death is not None), None)
    if all(deaths):
        verdict = DOES_NOT_FIT
    elif died is not None or not candidates.lives(offered_bytes - asked):
        verdict = TIGHT
    else:
        verdict = FITS
    by_order = died is not None and verdict == TIGHT
    least = None
    if closely or verdict != FITS or candidates.reserved_bytes > offered_bytes - asked:
        least = candidates.least_bytes(closely=closely)
        if verdict == FITS:  # which was found more closely than the least
            least = min(least, offered_bytes - asked)
        elif verdict == TIGHT and not by_order:
            least = min(least, offered_bytes)
    return Pressed(
        verdict=verdict,
        offered_bytes=offered_bytes,
        margin_bytes=asked,
        reserved_bytes=candidates.reserved_bytes,
        late_bytes=candidates.late_bytes,
        least_bytes=least,
        moment=None if died is None else died[0].moment_of(died[1].died_at or 0),
        by_order=by_order,
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
    if pressed.verdict != FITS:
        return pressed
    dies = _smaller_that_dies(peak_bytes, pressed.offered_bytes, micro_batch_size, of)
    return pressed if dies is None else replace(pressed, verdict=TIGHT, smaller_that_dies=dies)


def fits_firmly(
    candidates: Candidates,
    peak_bytes: int,
    offered_bytes: int,
    micro_batch_size: int,
    of: Callable[[int], tuple[Candidates, int]],
) -> bool:
    """Whether :func:`press` and :func:`firmly` say ``fits``, with as few replays as that takes."""
    if not lives(candidates, peak_bytes, offered_bytes):
        return False
    return _smaller_that_dies(peak_bytes, offered_bytes, micro_batch_size, of) is None


def _smaller_that_dies(
    peak_bytes: int, offered_bytes: int, micro_batch_size: int, of: Callable[[int], tuple[Candidates, int]]
) -> int | None:
    """The largest of the next smaller micro batches that is not called ``fits``; None: all are."""
    if peak_bytes * NEAR <= offered_bytes:
        return None
    smaller = range(micro_batch_size - 1, max(micro_batch_size - 1 - NEIGHBOURS, 0), -1)
    return next((size for size in smaller if not lives(*of(size), offered_bytes)), None)

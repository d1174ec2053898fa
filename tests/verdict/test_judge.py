"""The verdict of one plan, from far too little to plenty."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsplan.allocator import AllocatorSettings
from dsplan.units import GIB, MIB
from dsplan.verdict.bound import margin, reserved_bound
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT, Candidates, firmly, fits_firmly, lives, press
from dsplan.verdict.operations import RELEASE, Moment, Trace
from tests.verdict.plans import traced


def candidates(name: str = "zero2-ckpt", make: Callable[[int, int], Trace] | None = None) -> Candidates:
    return Candidates((0, 1), make or (lambda rank, _: traced(name, rank=rank)), AllocatorSettings())


def never(rank: int, skipped: int) -> Trace:
    raise AssertionError(f"rank {rank} was replayed ({skipped} steps skipped)")


def test_from_too_little_to_plenty() -> None:
    found = candidates()
    peak = found.allocated_bytes
    least = found.least_bytes(closely=True)
    assert least > peak + 40 * MIB  # otherwise there is nothing between the two
    asked = found.margin(least)
    for offered, verdict in (
        (peak - 1, DOES_NOT_FIT),
        ((peak + least) // 2, DOES_NOT_FIT),
        (least + 1, TIGHT),
        (least + asked // 2, TIGHT),
        (least + asked + MIB, FITS),
        (3 * peak, FITS),
    ):
        pressed = press(found, peak, offered, closely=False)
        assert pressed.verdict == verdict, offered
        assert lives(found, peak, offered) == (verdict == FITS), offered


def test_a_death_has_its_moment() -> None:
    found = candidates()
    middle = (found.allocated_bytes + found.least_bytes(closely=True)) // 2
    pressed = press(found, found.allocated_bytes, middle, closely=False)
    assert pressed.moment is not None
    assert pressed.moment.phase in ("init", "forward", "backward", "step")
    assert pressed.least_bytes is not None
    assert pressed.least_bytes > middle


def test_nothing_is_replayed_where_the_peak_decides() -> None:
    untouched = candidates(make=never)
    assert press(untouched, 10 * GIB, 9 * GIB, closely=False).verdict == DOES_NOT_FIT
    assert press(untouched, 10 * GIB, 20 * GIB, closely=False).verdict == FITS
    with pytest.raises(AssertionError, match="rank 0 was replayed"):
        press(untouched, 10 * GIB, 19 * GIB, closely=False)


def test_closely_says_what_is_reserved_and_needed_wherever_the_verdict_is_clear() -> None:
    found = candidates()
    for offered in (MIB, 100 * GIB):
        pressed = press(found, found.allocated_bytes, offered, closely=True)
        assert pressed.reserved_bytes == found.reserved_bytes
        assert pressed.least_bytes == pressed.need_bytes == found.least_bytes(closely=True)
        assert pressed.reserved_bound_bytes == reserved_bound(found.reserved_bytes, found.late_bytes)


def test_what_is_asked_for_rises_with_the_streams_and_the_device() -> None:
    assert margin(16 * GIB, several_streams=False) == 64 * MIB
    assert margin(16 * GIB, several_streams=True) == 128 * MIB
    assert margin(80 * GIB, several_streams=True) == round(0.4 * GIB)
    assert candidates("zero2").margin(16 * GIB) == 64 * MIB
    assert candidates("zero3").margin(16 * GIB) == 128 * MIB


def test_the_bound_on_reserved_memory_is_over_late_communication_too() -> None:
    assert reserved_bound(1000) == reserved_bound(1000, 900) == 1100
    assert reserved_bound(1000, 1200) == 1320
    stage2 = candidates("zero2")
    assert stage2.late_bytes == stage2.reserved_bytes
    found = candidates("zero3")
    found.__dict__["late_bytes"] = 2 * found.reserved_bytes
    pressed = press(found, found.allocated_bytes, 100 * GIB, closely=True)
    assert pressed.reserved_bound_bytes == reserved_bound(2 * found.reserved_bytes)


def test_the_worst_rank_decides() -> None:
    found = candidates("zero1")
    alone = [Candidates((rank,), lambda rank, _: traced("zero1", rank=rank), AllocatorSettings()) for rank in (0, 1)]
    assert found.least_bytes(closely=True) == max(one.least_bytes(closely=True) for one in alone)


def two_orders(_rank: int = 0, _skipped: int = 0) -> Trace:
    """A request of 20 MiB finds two blocks of 60: beside a live one of its segment, or all that its segment has."""
    operations = [
        (80 * MIB, 0),
        (60 * MIB, 0),
        (RELEASE, 0),
        (20 * MIB, 0),
        (RELEASE, 1),
        (20 * MIB, 0),
        (100 * MIB, 0),
    ]
    moment = Moment(0, "first step", "backward", "backward of block 0")
    return Trace(operations, [None] * len(operations), [moment])


def test_where_the_order_of_addresses_decides_it_is_tight() -> None:
    found = Candidates((0,), two_orders, AllocatorSettings())
    peak = found.allocated_bytes
    assert peak == 140 * MIB
    assert [found.death(239 * MIB, rising=rising) is None for rising in (False, True)] == [False, True]
    for offered, verdict, by_order in (
        (179 * MIB, DOES_NOT_FIT, False),
        (180 * MIB, TIGHT, True),
        (239 * MIB, TIGHT, True),
        (240 * MIB, TIGHT, False),
        (240 * MIB + found.margin(240 * MIB), FITS, False),
    ):
        pressed = press(found, 141 * MIB, offered, closely=True)
        assert (pressed.verdict, pressed.by_order) == (verdict, by_order), offered
        assert bool(pressed.doubt) == by_order
        assert pressed.least_bytes is not None
        assert 240 * MIB <= pressed.least_bytes <= 240 * MIB + 32 * MIB
    tight = press(found, 141 * MIB, 200 * MIB, closely=False)
    assert "in backward of the first step, backward of block 0" in tight.doubt
    one_order = Candidates((0,), two_orders, AllocatorSettings(expandable_segments=True))
    assert one_order.orders == (False,)


def test_what_never_gave_back_its_cache_is_not_replayed_with_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = candidates()
    enough = found.reserved_bytes
    for rising in found.orders:
        found.idle(rising=rising)
    monkeypatch.setattr("dsplan.verdict.pressure.replay", None)
    assert found.deaths(2 * enough) == (None, None)


def test_what_fits_has_its_margin_left_and_what_is_tight_has_none_missing() -> None:
    """Also where the least was looked for only coarsely."""
    found = candidates()
    least = found.least_bytes(closely=True)
    for spare in (0, found.margin(least) // 2, found.margin(least) + MIB, 2 * found.margin(least)):
        pressed = press(found, found.allocated_bytes, least + spare, closely=False)
        assert pressed.need_bytes is not None
        left = pressed.offered_bytes - pressed.need_bytes
        assert left >= (pressed.margin_bytes if pressed.verdict == FITS else 0), pressed


def test_the_quick_question_has_the_same_answer() -> None:
    """Also where a smaller micro batch dies: half of what it needs is asked of each here."""
    found, larger = candidates(), candidates("zero1")
    asked = []

    def of(size: int) -> tuple[Candidates, int]:
        asked.append(size)
        return (larger, larger.allocated_bytes) if size == 6 else (found, found.allocated_bytes)

    assert larger.allocated_bytes > found.allocated_bytes * 1.1
    for offered in (found.allocated_bytes, found.reserved_bytes + 100 * MIB, larger.reserved_bytes + 100 * MIB):
        for size in (7, 9):
            pressed = firmly(
                press(found, found.allocated_bytes, offered, closely=False), found.allocated_bytes, size, of
            )
            assert fits_firmly(found, found.allocated_bytes, offered, size, of) == (pressed.verdict == FITS)
            if pressed.smaller_that_dies is not None:
                assert pressed.smaller_that_dies == 6
    assert 6 in asked

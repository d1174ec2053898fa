"""The verdict of one plan, from far too little to plenty."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsplan.allocator import AllocatorSettings
from dsplan.units import GIB, MIB
from dsplan.verdict.bound import margin, reserved_bound
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT, Candidates, lives, press
from dsplan.verdict.operations import Trace
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
        assert pressed.reserved_bound_bytes == reserved_bound(found.reserved_bytes)


def test_what_is_asked_for_rises_with_the_streams_and_the_device() -> None:
    assert margin(16 * GIB, several_streams=False) == 64 * MIB
    assert margin(16 * GIB, several_streams=True) == 128 * MIB
    assert margin(80 * GIB, several_streams=True) == round(0.4 * GIB)
    assert candidates("zero2").margin(16 * GIB) == 64 * MIB
    assert candidates("zero3").margin(16 * GIB) == 128 * MIB


def test_the_worst_rank_decides() -> None:
    found = candidates("zero1")
    alone = [Candidates((rank,), lambda rank, _: traced("zero1", rank=rank), AllocatorSettings()) for rank in (0, 1)]
    assert found.least_bytes(closely=True) == max(one.least_bytes(closely=True) for one in alone)

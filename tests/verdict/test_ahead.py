"""How far stage 3's host runs ahead, and what it keeps meanwhile."""

from __future__ import annotations

from dsplan.units import MIB
from dsplan.verdict.ahead import Ahead, Kind, Signal
from dsplan.verdict.late import late_reserved_bytes
from dsplan.verdict.operations import RELEASE, Trace
from dsplan.verdict.pressure import replay


def gathered(ahead: Ahead, number: int, now: int) -> None:
    for kind in Kind:
        ahead.hear(Signal.of(kind, number), now)


def test_the_host_waits_for_the_oldest_of_more_than_two_fetches() -> None:
    ahead = Ahead()
    for number, now in enumerate((10, 20, 30)):
        gathered(ahead, number, now)
    assert ahead.waits == []
    gathered(ahead, 3, 40)
    assert ahead.waits == [(40, 10)]


def test_what_was_reached_in_another_way_is_not_waited_for() -> None:
    ahead = Ahead()
    for number, now in enumerate((10, 20, 30)):
        gathered(ahead, number, now)
    ahead.catch_up(35)
    for number, now in enumerate((40, 50, 60), start=3):
        gathered(ahead, number, now)
    assert ahead.waits == [(35, 35)]


def test_what_was_asked_for_early_is_done_early() -> None:
    """A gather that was asked for before others is waited for without them."""
    ahead = Ahead()
    for number, now in enumerate((10, 20, 30, 40)):
        ahead.hear(Signal.of(Kind.ASKED, number), now)
    for number in range(4):
        ahead.hear(Signal.of(Kind.WAITS, number), 50)
        ahead.hear(Signal.of(Kind.FETCHED, number), 50)
    assert ahead.waits == [(50, 10)]


def test_buckets_are_waited_for_like_fetches() -> None:
    ahead = Ahead()
    for now in (10, 20, 30, 40):
        ahead.before_reduction(now)
        ahead.after_reduction(now + 5)
    assert ahead.waits == [(40, 15)]


def test_a_weight_is_kept_for_what_was_fetched_and_a_gradient_for_what_was_reduced_too() -> None:
    ahead = Ahead()
    ahead.released(5, gradient=True)  # nothing is under way
    gathered(ahead, 0, 10)
    ahead.released(11, gradient=False)
    ahead.after_reduction(20)
    ahead.released(21, gradient=False)
    ahead.released(22, gradient=True)
    assert ahead.kept == {11: 10, 21: 10, 22: 20}


def test_a_step_that_comes_again_keeps_and_waits_again() -> None:
    ahead = Ahead()
    gathered(ahead, 0, 10)
    ahead.released(11, gradient=False)
    ahead.catch_up(15)
    gathered(ahead, 1, 20)
    ahead.released(21, gradient=False)
    ahead.catch_up(25)
    ahead.repeat(18, 28)
    assert ahead.kept == {11: 10, 21: 20, 31: 30}
    assert ahead.waits == [(15, 15), (25, 25), (35, 35)]


def test_a_signal_changes_nothing() -> None:
    assert sum((3, Signal.of(Kind.ASKED, 7), -3)) == 0
    assert not Signal.of(Kind.ASKED, 7)


def trace(waits: tuple[tuple[int, int], ...]) -> Trace:
    """Three blocks of one size, each released before the next is asked for; the first two releases are kept."""
    operations = [(40 * MIB, 1), (RELEASE, 0), (40 * MIB, 1), (RELEASE, 2), (40 * MIB, 1), (RELEASE, 4)]
    return Trace(operations, [None] * len(operations), [], kept={1: 1, 3: 3}, waits=waits)


def test_a_block_that_is_kept_cannot_be_reused_until_the_host_has_waited() -> None:
    assert replay(trace(())).reserved_bytes == 40 * MIB
    assert late_reserved_bytes(trace(())) == 120 * MIB
    assert late_reserved_bytes(trace(((4, 1),))) == 80 * MIB  # the first is back, the second is not
    assert late_reserved_bytes(trace(((2, 1), (4, 3)))) == 40 * MIB


def test_a_cache_that_is_emptied_takes_back_what_was_kept() -> None:
    kept = trace(())
    operations = [*kept.operations[:4], (-2, 0), *[(size, other + (size < 0)) for size, other in kept.operations[4:]]]
    emptied = Trace(operations, [None] * len(operations), [], kept=kept.kept)
    assert late_reserved_bytes(emptied) == 80 * MIB

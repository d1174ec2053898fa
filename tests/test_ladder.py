"""Ladder: the largest micro batch that fits, found with few tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsplan.ladder import LARGEST, largest_below, largest_that_fits


def search(limit: int, **known: int | bool) -> tuple[int, list[int]]:
    """What is found where everything up to ``limit`` fits, and what was tried."""
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    return largest_that_fits(fits, **known), tried  # type: ignore[arg-type]


@given(st.integers(0, LARGEST))
def test_it_finds_the_edge(limit: int) -> None:
    found, tried = search(limit)
    assert found == limit
    assert all(1 <= number <= LARGEST for number in tried)
    assert len(set(tried)) == len(tried) <= 34


@given(st.integers(0, LARGEST), st.integers(1, LARGEST))
def test_what_is_known_already_is_not_tried_again(limit: int, known: int) -> None:
    found, tried = search(limit, known=known, known_fits=known <= limit)
    assert found == limit
    assert known not in tried
    if known <= limit:
        assert all(number > known for number in tried)
    else:
        assert all(number < known for number in tried)


def test_it_stops_where_nobody_looks() -> None:
    assert search(10**9)[0] == LARGEST
    assert search(0)[0] == 0


def test_a_known_failure_at_one_needs_no_try() -> None:
    assert search(0, known=1, known_fits=False) == (0, [])


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_below_a_bound_the_edge_is_found_too(bound: int, limit: int, low: int) -> None:
    limit = min(limit, bound)
    low = min(low, limit)
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    assert largest_below(bound, fits, low=low) == limit
    assert all(low < number <= bound for number in tried)
    assert len(set(tried)) == len(tried) <= 20


@given(st.integers(0, 400), st.integers(0, 400), st.sets(st.integers(1, 400), max_size=6))
def test_what_only_might_fit_is_asked_in_full_and_passed_over(bound: int, limit: int, refused: set[int]) -> None:
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number not in refused

    edge = min(bound, limit)
    found = largest_below(bound, fits, might_fit=lambda number: number <= limit)
    assert found == next((number for number in range(edge, 0, -1) if number not in refused), 0)
    assert asked == [number for number in range(edge, 0, -1) if number >= max(found, 1)]

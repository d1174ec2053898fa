"""Grid: measured sizes are met, between them the line is straight in logarithms, beyond them time grows with work."""

from __future__ import annotations

import pytest

from dsplan.timing.grid import Grid, Line, of_the_device


def test_a_line_meets_its_points_and_is_straight_between_them_in_logarithms() -> None:
    line = Line([(100, 1.0), (10_000, 100.0)])
    assert line.at(100) == pytest.approx(1.0)
    assert line.at(10_000) == pytest.approx(100.0)
    assert line.at(1_000) == pytest.approx(10.0)


def test_beyond_a_line_time_grows_with_size_and_before_it_is_the_launch() -> None:
    line = Line([(100, 1.0), (10_000, 20.0)])
    assert line.at(20_000) == pytest.approx(40.0)
    assert line.at(1) == pytest.approx(1.0)
    assert line.at(0) == 0.0


def test_a_grid_meets_its_points_and_interpolates_work_exactly() -> None:
    points = {(a, b, c): 1e-9 * a * b * c for a in (10, 100) for b in (10, 1000) for c in (8, 64)}
    grid = Grid(points)
    for key, seconds in points.items():
        assert grid.at(*key) == pytest.approx(seconds)
    assert grid.at(37, 222, 11) == pytest.approx(1e-9 * 37 * 222 * 11)
    assert grid.at(1000, 222, 640) == pytest.approx(1e-9 * 1000 * 222 * 640)


def test_a_combination_that_was_not_measured_takes_the_nearest_smaller_by_work() -> None:
    points = {(1, 1): 1.0, (1, 5): 5.0, (10, 1): 8.0}
    assert Grid(points).at(10, 5) == pytest.approx(8.0 * 5)


def test_what_the_host_asked_for_says_nothing_of_the_device() -> None:
    # Asking takes 10 us; the device 1 us for 2**10 elements: what is measured is the longer of the two.
    sizes = [2.0**power for power in range(10, 21, 2)]
    line = Line([(size, max(10e-6, size / 2**10 * 1e-6)) for size in sizes], asked=True)
    for size in (2**8, 2**10, 2**13, 2**18, 2**22):
        assert line.at(size) == pytest.approx(size / 2**10 * 1e-6, rel=0.01)
    assert Line([(2.0**10, 10e-6), (2.0**20, 1e-3)]).at(2**8) == pytest.approx(10e-6)


def test_a_grid_knows_no_more_than_was_measured_above_asking() -> None:
    asking, rate = 10e-6, 1e9
    points = {(a, b): max(asking, a * b / rate) for a in (10, 100, 1000) for b in (10, 100, 1000)}
    grid = Grid(points, asked=True)
    for a, b in ((10, 10), (1000, 10), (100, 1000), (1000, 1000), (300, 300), (5, 5)):
        assert grid.at(a, b) == pytest.approx(a * b / rate, rel=0.01)


def test_a_small_size_that_the_device_is_slow_with_is_not_taken_for_faster_than_measured() -> None:
    found = of_the_device({(1,): 10e-6, (10,): 15e-6, (100,): 1000e-6})
    assert found == {(1,): 10e-6, (10,): 15e-6, (100,): 1000e-6}  # by the ratio of the work: 10 and 100

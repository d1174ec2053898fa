"""Grid: measured sizes are met, between them the line is straight in logarithms, beyond them time grows with work."""

from __future__ import annotations

import pytest

from dsplan.timing.grid import Grid, Line


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

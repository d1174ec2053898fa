"""Step times of the committed records of H200 machines: by data sheets, and by the profile that ships."""

from __future__ import annotations

import statistics

import pytest

from dsplan.timing.profiles import shipped
from tests.regret import spearman, written
from tests.step_accuracy import DOCUMENT, HOSTS, Row, hosts_of, rows, summary


@pytest.fixture(scope="module")
def nominal() -> list[Row]:
    return rows()


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return rows(shipped("h200"))


def test_step_times_are_within_a_fifth_in_the_median_and_in_order(nominal: list[Row], measured: list[Row]) -> None:
    for found in (nominal, measured, *([row for row in measured if hosts_of(row) == hosts] for hosts in HOSTS)):
        assert len(found) >= 28
        assert statistics.median(abs(row.error) for row in found) < 0.2
        assert spearman([row.predicted.seconds for row in found], [row.measured for row in found]) > 0.9


def test_the_document_says_how_right_they_are(nominal: list[Row], measured: list[Row]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for marker, found in (("nominal", nominal), ("h200", measured)):
        assert written(text, marker, summary(found)) == text, "python -m tests.step_accuracy --write"


def test_rank_correlation_is_one_in_order_and_minus_one_against_it() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == 1
    assert spearman([1, 2, 3], [3, 2, 1]) == -1
    assert spearman([1], [1]) == 1


def test_of_what_is_equal_no_order_is_said() -> None:
    assert spearman([1, 1, 2], [1, 2, 3]) == spearman([1, 1, 2], [2, 1, 3]) == pytest.approx(0.75**0.5)
    assert spearman([1, 1, 2], [5, 5, 7]) == 1

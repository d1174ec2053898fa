"""Step times by data sheets against the committed records of H200 machines, without those the host comes from."""

from __future__ import annotations

import statistics
from pathlib import Path

from dsplan.timing.nominal import catalogue
from tests.regret import spearman
from tests.step_accuracy import rows, summary

DOCUMENT = Path(__file__).parents[2] / "docs" / "step-time.md"


def test_step_times_are_within_a_fifth_in_the_median_and_in_order() -> None:
    apart = [row for row in rows() if not row.host]
    assert len(apart) >= 47
    assert statistics.median(abs(row.error) for row in apart) < 0.2
    assert spearman([row.predicted.seconds for row in apart], [row.measured for row in apart]) > 0.9


def test_the_nominal_hosts_figures_are_those_of_their_records() -> None:
    measured = {row.name: row.measured for row in rows()}
    for row in catalogue()["host"]["rows"]:
        assert row["seconds"] == round(measured[row["record"]], 4)


def test_the_document_says_how_right_they_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "\n".join(summary(rows())) in text


def test_rank_correlation_is_one_in_order_and_minus_one_against_it() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == 1
    assert spearman([1, 2, 3], [3, 2, 1]) == -1
    assert spearman([1], [1]) == 1

"""The judge of recommendations: a machine that is as fast as predicted leaves nothing to regret, another one does."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.search.memory import weigh
from dsplan.search.search import search
from dsplan.timing.rates import machine
from tests.gpu.header import header, write_rows
from tests.gpu.regret_jobs import capped, jobs
from tests.gpu.regret_settings import QUICK, RECOMMENDED, SETS, SETTINGS, TINY, Setting
from tests.regret import (
    DOCUMENT,
    MEASURED,
    SEEN,
    UNSEEN,
    judged,
    measured_settings,
    outcome,
    predicted,
    report,
    table,
    written,
)
from tests.timing.profiles import profile

SETTING = replace(SETTINGS[0], strategies=("zero1", "zero1-ckpt", "zero3"), micro_batch_sizes=(1, 4, 16))


def rows(setting: Setting) -> list[dict[str, Any]]:
    """As the settings are measured, by a machine that takes exactly the predicted time."""
    of = machine(accelerator("h200"), profile())
    found = []
    for size in setting.micro_batch_sizes:
        for plan in setting.plans(size):
            row: dict[str, Any] = {"setting": setting.name, "strategy": plan.name, "micro_batch_size": size}
            if weigh(setting.model_shape(), plan, capped(setting)).fits:
                found.append({**row, "status": "ok", "seconds": predicted(setting, row, of).seconds})
            else:
                found.append({**row, "status": "beyond"})
    return found


def test_what_is_as_predicted_leaves_nothing_to_regret() -> None:
    measured = rows(SETTING)
    found = outcome(SETTING, measured, profile())
    assert found is not None
    assert found.reached == pytest.approx(1)
    assert found.recommended == found.best
    assert found.errors == pytest.approx([0.0] * sum(row["status"] == "ok" for row in measured))
    assert found.correlation == pytest.approx(1)


def test_a_configuration_that_was_faster_than_predicted_is_regretted() -> None:
    measured = rows(SETTING)
    best = outcome(SETTING, measured, profile())
    assert best is not None
    slowest = min(
        (row for row in measured if row["status"] == "ok"), key=lambda row: row["micro_batch_size"] / row["seconds"]
    )
    slowest["seconds"] /= 1000
    found = outcome(SETTING, measured, profile())
    assert found is not None
    assert found.reached is not None
    assert found.reached < 0.5
    assert found.best == f"{slowest['strategy']} x {slowest['micro_batch_size']}"


def test_a_recommendation_that_did_not_run_is_said_to() -> None:
    measured = rows(SETTING)
    best = outcome(SETTING, measured, profile())
    assert best is not None
    for row in measured:
        if f"{row['strategy']} x {row['micro_batch_size']}" == best.recommended:
            row["status"] = "oom"
    found = outcome(SETTING, measured, profile())
    assert found is not None
    assert found.reached is None


def test_settings_are_what_was_asked_for() -> None:
    assert len(SETTINGS) >= 6
    assert {setting.cap_gib for setting in SETTINGS} == {16, 24, 40, 80}
    assert {setting.ranks for setting in SETTINGS} == {1, 2}
    sizes = [setting.model_shape().num_parameters for setting in SETTINGS]
    assert min(sizes) < 0.5e9
    assert max(sizes) > 2.6e9
    for setting in (*SETTINGS, *TINY):
        assert [plan.name for plan in setting.plans()] == list(setting.strategies)


def test_what_was_recommended_before_anything_was_measured_is_what_counts() -> None:
    measured = rows(SETTING)
    best = outcome(SETTING, measured, profile())
    assert best is not None
    assert not best.asked
    row = {"setting": SETTING.name, "strategy": RECOMMENDED, "of": "zero1", "micro_batch_size": 5, "status": "ok"}
    fastest = max(row["micro_batch_size"] / row["seconds"] for row in measured if row["status"] == "ok")
    found = outcome(SETTING, [*measured, {**row, "seconds": 5 / (0.9 * fastest)}], profile())
    assert found is not None
    assert (found.asked, found.recommended, found.best) == (True, "zero1 x 5", best.best)
    assert found.reached == found.closely_reached == pytest.approx(0.9)
    assert found.errors == best.errors
    quick = {**row, "strategy": QUICK, "of": "zero3", "micro_batch_size": 2, "seconds": 2 / (0.5 * fastest)}
    both = outcome(SETTING, [*measured, {**row, "status": "oom"}, quick], profile())
    assert both is not None
    assert (both.recommended, both.closely, both.closely_reached) == ("zero3 x 2", "zero1 x 5", None)
    assert both.reached == pytest.approx(0.5)
    faster = outcome(SETTING, [*measured, {**row, "seconds": 5 / (1.1 * fastest)}], profile())
    assert faster is not None
    assert faster.reached == 1
    died = outcome(SETTING, [*measured, {**row, "status": "oom"}], profile())
    assert died is not None
    assert died.reached is None
    assert "| zero1 x 5 |" in "".join(table([found]))
    assert "reaches 90.0 % in the median" in "".join(table([found]))


def test_what_is_recommended_is_measured_first_and_settings_take_turns() -> None:
    found = jobs(TINY)
    first = [job["setting"] for job in found[: len(TINY)]]
    assert sorted(first) == sorted(setting.name for setting in TINY)
    assert {job["strategy"] for job in found[: len(TINY)]} == {RECOMMENDED}
    for job in found:
        assert job["ds_config"]["train_micro_batch_size_per_gpu"] >= 1
        assert job["peaks"] == sorted(job["peaks"])
    for setting in TINY:
        measured = [job["strategy"] for job in found if job["setting"] == setting.name]
        assert set(setting.strategies) <= set(measured)


def test_a_setting_that_was_measured_again_has_all_rows_and_the_last_recommendation(tmp_path: Path) -> None:
    name = "xl-sdpa-n1-40"  # of the first set and of the third
    of = {
        "first": [(RECOMMENDED, 24, "oom"), (QUICK, 20, "ok"), ("zero1-ckpt", 16, "ok")],
        "third": [("zero2-ckpt", 16, "ok"), (RECOMMENDED, 28, "ok")],
    }
    for stem, rows in of.items():
        made = [
            {"setting": name, "strategy": strategy, "micro_batch_size": size, "status": status}
            for strategy, size, status in rows
        ]
        write_rows(tmp_path / f"{stem}.json", header("a test", "", {}), made)
    found = {
        setting.name: rows for setting, rows in measured_settings([tmp_path / f"{stem}.json" for stem in MEASURED])
    }
    assert [row["micro_batch_size"] for row in found[name]] == [16, 16, 28]
    assert found["medium-n1-16"] == []
    assert list(found).count(name) == 1


def test_the_document_says_what_was_measured() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(text, "regret", report()) == text, "python -m tests.regret --write"


def test_what_was_recommended_ran_and_was_hardly_slower_than_the_best() -> None:
    found = [*judged(SEEN), *judged(UNSEEN)]
    assert len(found) >= 20
    assert all(one.reached is not None for one in found)
    shares = [one.reached or 0.0 for one in found if one.num_strategies > 1]
    assert statistics.median(shares) >= 0.95
    errors = [abs(error) for one in found for error in one.errors]
    assert statistics.median(errors) < 0.2
    assert all(one.correlation >= 0.9 for one in found)


def test_where_the_bound_cost_a_tenth_the_replay_is_asked_now() -> None:
    setting = replace(SETS["first"][2], strategies=("zero1-ckpt", "zero3-ckpt"))
    model, cluster = setting.model_shape(), capped(setting)
    winner = search(model, list(setting.plans()), cluster, sizes=(20, 24), vary=False, what_if=False).winner
    assert winner is not None
    assert (winner.plan.name, winner.plan.workload.micro_batch_size) == ("zero1-ckpt", 24)
    assert not weigh(model, winner.plan, cluster).fits


def test_what_was_recommended_is_nowhere_a_tenth_slower_than_the_best() -> None:
    found = [*judged(SEEN), *judged(UNSEEN)]
    assert min(one.reached or 0.0 for one in found if one.num_strategies > 1) >= 0.9


def test_stage_3_is_not_taken_for_a_hundredth_now() -> None:
    setting = replace(SETS["fourth"][3], strategies=("zero3", "zero1-ckpt"))
    model, cluster = setting.model_shape(), capped(setting)
    found = search(model, list(setting.plans()), cluster, sizes=(5, 32, 56), what_if=False)
    assert found.winner is not None
    assert (found.winner.plan.name, found.winner.plan.workload.micro_batch_size) == ("zero1-ckpt", 56)
    (other,) = found.runners_up
    assert other.plan.name == "zero3"
    assert 1 < other.tokens_per_s / found.winner.tokens_per_s < 1.02
    (why,) = found.rejected
    assert "% faster, less than measurements of one step lie apart; mostly " in why.why

"""The judge of recommendations: a machine that is as fast as predicted leaves nothing to regret, another one does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.search.memory import weigh
from dsplan.timing.rates import machine
from tests.gpu.regret_settings import SETTINGS, TINY, Setting
from tests.regret import capped, outcome, predicted
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
